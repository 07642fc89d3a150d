"""A run folder: what the run is (its fingerprint), how far it got, and the state to go on from.

DIR/run/recipe.yaml  plan.json  fingerprint.json  journal.jsonl  steps/<n>-<name>/  report.json
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, FingerprintError, SaveError
from mote_quant.fingerprint import differences
from mote_quant.hf.integrity import describe, read_manifest, sync, verify_file, write_atomic
from mote_quant.hf.structure import Structure, rebuild, structure_of

_log = logging.getLogger(__name__)
_STATE, _DONE = "state", "done.json"


class Run:
    """One run folder. `Run.open` makes or continues it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output / "run"

    @classmethod
    def open(cls, output: Path, fingerprint: Mapping[str, Any]) -> Run:
        """Start a run, or continue the one that is there. FingerprintError when that is another; SaveError."""
        run = cls(output)
        known = run.folder / "fingerprint.json"
        try:
            if known.exists():
                _refuse_another(output, _object_in(known), fingerprint)
            else:
                _refuse_strangers(output)
                run.folder.mkdir(parents=True, exist_ok=True)
                write_atomic(known, json.dumps(fingerprint, indent=2))
        except OSError as error:
            raise SaveError(f"{output} cannot be used as an output folder: {error}") from error
        except ValueError as error:
            raise ArtifactError(f"{known} cannot be read ({error}); choose another output folder") from error
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While open, no other process works in this folder. FingerprintError where one does already."""
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise FingerprintError(
                f"another run is at work in {self.output}: wait for it to end, or choose another --output"
            ) from error
        except (OSError, NotImplementedError) as error:
            # Some network file systems have no locks.
            _log.debug("%s could not be locked: %s", self.folder, error)
        try:
            yield
        finally:
            lock.release()

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the journal."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values})
        path = self.folder / "journal.jsonl"
        try:
            with path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SaveError(f"{path} could not be written: {error}") from error

    def write(self, name: str, text: str) -> None:
        """Write `DIR/run/<name>` atomically."""
        try:
            write_atomic(self.folder / name, text)
        except OSError as error:
            raise SaveError(f"{self.folder / name} could not be written: {error}") from error

    def finish(self, names: Iterable[str]) -> None:
        """Say that the run is done, and what the files `names` of its model are."""
        files = {name: describe(self.output / name) for name in sorted(names)}
        self.write(_DONE, json.dumps({"files": files}))
        self.log("done")

    def finished(self) -> bool:
        """True for a run that is done; ArtifactError naming a file of its model that is not what was written."""
        done = self.folder / _DONE
        if not done.exists():
            return False
        advice = f"delete {done} to finish this run again, or use another --output"
        for name, expected in read_manifest(done, advice, "files").items():
            verify_file(self.output / name, expected, advice)
        return True

    def step_folder(self, index: int, name: str) -> Path:
        """Where step `index` (from 0) keeps its checkpoints and its result."""
        return self.folder / "steps" / f"{index + 1}-{name}"

    def save_state(self, index: int, name: str, model: nn.Module, notes: list[dict[str, Any]]) -> None:
        """Keep the model as it is after step `index`, whole or not at all; its checkpoints are then dropped."""
        folder = self.step_folder(index, name)
        aside = folder / f".{_STATE}.part"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(_own_tensors(model), aside / "model.safetensors")
            structure = structure_of(model, latent=True).to_dict()
            config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
            losses = {key: getattr(config, key, 0.0) for key in ("balance_loss", "z_loss")}
            values = {"structure": structure, "losses": losses, "notes": notes}
            (aside / "state.json").write_text(json.dumps(values))
            files = {path.name: describe(path) for path in sorted(aside.iterdir())}
            (aside / "manifest.json").write_text(json.dumps(files))
            for path in aside.iterdir():
                sync(path)
            os.replace(aside, folder / _STATE)
            sync(folder)
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise SaveError(
                f"{folder} could not be written: {error}; free space and run the same command again"
            ) from error
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path, ignore_errors=True)

    def finished_steps(self, names: list[str]) -> int:
        """How many leading steps need not run again."""
        done = [index for index, name in enumerate(names) if (self.step_folder(index, name) / _STATE).is_dir()]
        return max(done) + 1 if done else 0

    def restore_state(self, index: int, name: str, model: nn.Module) -> list[dict[str, Any]]:
        """Put `model` (as the run was given it) in the state after step `index`; returns the notes up to there."""
        folder = self.step_folder(index, name) / _STATE
        advice = f"delete {folder} to redo this step"
        for file, expected in read_manifest(folder / "manifest.json", advice).items():
            verify_file(folder / file, expected, advice)
        values = json.loads((folder / "state.json").read_text())
        structure = Structure.from_dict(values["structure"])
        rebuild(model, structure)
        _load(model, load_file(folder / "model.safetensors"))
        if structure != Structure():
            from mote_quant.hf.attach import attach

            attach(model, **values["losses"])
        notes: list[dict[str, Any]] = values["notes"]
        return notes

    @property
    def stages(self) -> Path:
        """Where a streamed run keeps the stages of the model that are finished."""
        return self.folder / "stages"

    def drop_steps(self, before: int | None = None) -> None:
        """Remove the states of the steps before index `before` (all without it), no longer needed to resume."""
        if before is None:
            shutil.rmtree(self.stages, ignore_errors=True)
        for folder in (self.folder / "steps").glob("*-*"):
            number = re.match(r"(\d+)-", folder.name)
            if number and (before is None or int(number[1]) - 1 < before):
                shutil.rmtree(folder, ignore_errors=True)


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied tensors once."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor.detach().contiguous()
            seen.add(id(tensor))
    return tensors


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = dict(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        target = own[name]
        if target.is_meta or target.dtype != tensor.dtype or target.shape != tensor.shape:
            raise ArtifactError(f"{name} in the saved state is not of the type and shape the model has")
        target.data.copy_(tensor)


def _refuse_another(output: Path, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    details = "; ".join(differences(known, now))
    if details:
        raise FingerprintError(
            f"{output} holds a run that differs: {details}. Choose another --output, or delete that folder"
        )


def _object_in(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"an object was written, this is a {type(values).__name__}")
    return values


def _refuse_strangers(output: Path) -> None:
    """A folder with somebody else's model in it is not ours to overwrite."""
    if (output / "config.json").exists() or any(output.glob("*.safetensors")):
        raise FingerprintError(
            f"{output} already holds a model that this command did not make; choose another --output"
        )
