"""The tensors of a model folder, memory-mapped: names, shapes and types cost nothing, data is read when it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mote_quant.errors import ArtifactError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_AGAIN = "copy or download it again"


class WeightFiles(Mapping[str, Tensor]):
    """Every tensor of the folder's safetensors files by name. Raises ArtifactError naming the file that is at fault."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in _paths(folder):
            file = _opened(path)
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _paths(folder: Path) -> list[Path]:
    """The index decides: beside its shards there may be the same weights once more under other names."""
    if (folder / _INDEX).is_file():
        return [folder / name for name in _indexed(folder / _INDEX)]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ArtifactError(f"{folder} holds no weight files (*.safetensors); convert what it holds to safetensors")
    return found


def _indexed(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{index} cannot be read ({type(error).__name__}: {error}); {_AGAIN}") from error


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; {_AGAIN}")
    try:
        return safe_open(str(path), "pt")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; {_AGAIN}") from error
