"""The files of a model that is written stage by stage: each whole or not there, with all that a resumed run needs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mote_quant.errors import ArtifactError
from mote_quant.hf.integrity import describe, sync, verify_file, write_atomic
from mote_quant.hf.parts import save_index
from mote_quant.hf.saving import as_save_error, stored_bytes

_WEIGHTS, _STATE, _RECORD = "safetensors", "state", "json"


@dataclass(frozen=True)
class Record:
    """A finished stage. `names`: tensor of the model -> its name in the file; `notes`: its rows of the report.

    `files` are sizes and hashes.
    """

    names: dict[str, str]
    notes: dict[str, Any]
    files: dict[str, dict[str, Any]]


class Shards:
    """Each stage is its weights, the state of the run after it and, written last, its record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> int:
        """How many stages need not be done again."""
        return len(list(self.folder.glob(f"*.{_RECORD}")))

    def record(self, stage: int) -> Record | None:
        """What is known of a stage; None when it is not finished. ArtifactError for one that was damaged since."""
        path = self._path(stage, _RECORD)
        if not path.exists():
            return None
        advice = f"delete {path} to redo this part of the model"
        try:
            record = Record(**json.loads(path.read_text()))
            for kind, file in record.files.items():
                verify_file(self._path(stage, kind), file, advice)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read ({type(error).__name__}: {error}); {advice}") from error
        return record

    def state(self, stage: int) -> dict[str, Tensor]:
        """The state of the run after a finished stage."""
        return cast("dict[str, Tensor]", load_file(self._path(stage, _STATE)))

    def write(
        self,
        stage: int,
        tensors: Mapping[str, Tensor],
        owners: Mapping[str, Tensor],
        notes: dict[str, Any],
        state: Mapping[str, Tensor],
    ) -> Record:
        """Write `tensors` (file name -> tensor); `owners` are the same under the model's names. Raises SaveError."""
        places = {_place(tensor): name for name, tensor in tensors.items() if tensor.numel()}
        names = {name: places[_place(tensor)] for name, tensor in owners.items() if _place(tensor) in places}
        with as_save_error(self._path(stage, _WEIGHTS)):
            self.folder.mkdir(parents=True, exist_ok=True)
            files = {kind: self._save(stage, kind, part) for kind, part in ((_STATE, state), (_WEIGHTS, tensors))}
            record = Record(names, notes, files)
            write_atomic(self._path(stage, _RECORD), json.dumps(asdict(record)))
        return record

    def adopt(self, model: nn.Module, stage: int, record: Record) -> None:
        """Let the tensors of `model` lie in the file of `stage`, mapped, in the place of memory."""
        with safe_open(self._path(stage, _WEIGHTS), framework="pt", device="cpu") as file:
            for name, stored in record.names.items():
                _assign(model, name, file.get_tensor(stored))

    def place(self, count: int, folder: Path) -> None:
        """Enter all `count` stages into `folder` under the names of a sharded model, with its index."""
        held = {stage: keys for stage in range(count) if (keys := self._keys(stage))}
        names = {stage: f"model-{number:05d}-of-{len(held):05d}.safetensors" for number, stage in enumerate(held, 1)}
        for stage, name in names.items():
            _link(self._path(stage, _WEIGHTS), folder / name)
        save_index({names[stage]: keys for stage, keys in held.items()}, stored_bytes(folder), folder)

    def _keys(self, stage: int) -> list[str]:
        with safe_open(self._path(stage, _WEIGHTS), framework="pt") as file:
            return list(file.keys())

    def _save(self, stage: int, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        path = self._path(stage, kind)
        aside = path.with_name(f".{path.name}.part")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, {"format": "pt"})
        sync(aside)
        os.replace(aside, path)
        return describe(path)

    def _path(self, stage: int, kind: str) -> Path:
        return self.folder / f"{stage:04d}.{kind}"


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Where a tensor lies: renaming leaves it there, a part of it has another shape."""
    return tensor.data_ptr(), tensor.shape


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copyfile(source, target)


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    now = module._parameters.get(own)
    if now is None:
        module._buffers[own] = tensor
    elif now.shape != tensor.shape:
        raise ArtifactError(f"{name} in a finished part of the model is not of the shape the model has")
    else:
        now.data = tensor
