"""A run folder: what the run is (its fingerprint), how far it got, and the state to go on from.

DIR/run/recipe.yaml  plan.json  fingerprint.json  journal.jsonl  steps/<n>-<name>/  report.json
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, FingerprintError, SaveError
from mote_quant.hf.integrity import describe, sync, verify_file, write_atomic
from mote_quant.hf.structure import Structure, rebuild, structure_of

_STATE = "state"


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
            run.folder.mkdir(parents=True, exist_ok=True)
            if known.exists():
                _refuse_another(output, json.loads(known.read_text()), fingerprint)
            else:
                _refuse_strangers(output)
                write_atomic(known, json.dumps(fingerprint, indent=2))
        except OSError as error:
            raise SaveError(f"{output} cannot be used as an output folder: {error}") from error
        except ValueError as error:
            raise ArtifactError(f"{known} cannot be read ({error}); choose another output folder") from error
        return run

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

    def read_json(self, name: str) -> Any | None:
        """The content of `DIR/run/<name>`; None when it is not there. ArtifactError when it cannot be read."""
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}); delete it to finish this run again") from error

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
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            for file, expected in manifest.items():
                verify_file(folder / file, expected)
            values = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder} cannot be read ({error}); delete it to redo this step") from error
        structure = Structure.from_dict(values["structure"])
        rebuild(model, structure)
        _load(model, load_file(folder / "model.safetensors"))
        if structure != Structure():
            from mote_quant.hf.attach import attach

            attach(model, **values["losses"])
        notes: list[dict[str, Any]] = values["notes"]
        return notes

    def drop_steps(self, before: int | None = None) -> None:
        """Remove the states of the steps before index `before` (all without it), no longer needed to resume."""
        for folder in (self.folder / "steps").glob("*-*"):
            if before is None or int(folder.name.split("-")[0]) - 1 < before:
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


def _refuse_another(output: Path, known: dict[str, Any], now: Mapping[str, Any]) -> None:
    differing = [key for key in sorted({*known, *now}) if known.get(key) != now.get(key)]
    if not differing:
        return
    details = "; ".join(_difference(key, known.get(key), now.get(key)) for key in differing)
    raise FingerprintError(
        f"{output} holds a run that differs: {details}. Choose another --output, or delete that folder"
    )


def _difference(key: str, known: Any, now: Any) -> str:
    known, now = _as_mapping(known), _as_mapping(now)
    if isinstance(known, dict) and isinstance(now, dict):
        parts = [part for part in sorted({*known, *now}) if known.get(part) != now.get(part)]
        return "; ".join(_difference(f"{key}.{part}", known.get(part), now.get(part)) for part in parts)
    return f"{key} was {_short(known)}, is now {_short(now)}"


def _as_mapping(value: Any) -> Any:
    return {str(index): item for index, item in enumerate(value)} if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _refuse_strangers(output: Path) -> None:
    """A folder with somebody else's model in it is not ours to overwrite."""
    if (output / "config.json").exists():
        raise FingerprintError(
            f"{output} already holds a model that this command did not make; choose another --output"
        )
