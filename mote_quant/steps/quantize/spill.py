"""A list of tensors of which only so many bytes are held in memory; the others wait in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from safetensors.torch import load_file, save_file
from torch import Tensor

HELD_BYTES = 64 * 2**20
"""Small models never touch the disk; what a layer of a large one passes on does not add to its peak memory."""


class Spill:
    """`append` and `replace` tensors, iterate over them in order; each comes back on its device, equal to the bit."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._room = held_bytes
        self._items: list[Tensor | tuple[Path, str]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self._items)))

    def __getitem__(self, index: int) -> Tensor:
        item = self._items[index]
        if isinstance(item, Tensor):
            return item
        path, device = item
        return cast(Tensor, load_file(path, device=device)["hidden"])

    def append(self, tensor: Tensor) -> None:
        """Add a tensor at the end."""
        self._items.append(self._kept(len(self._items), tensor))

    def replace(self, index: int, tensor: Tensor) -> None:
        """Put a tensor in the place of another."""
        old = self._items[index]
        if isinstance(old, Tensor):
            self._room += old.nbytes
        self._items[index] = self._kept(index, tensor)

    def _kept(self, index: int, tensor: Tensor) -> Tensor | tuple[Path, str]:
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            return tensor
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="mote-quant-")
        path = Path(self._folder.name) / f"{index}.safetensors"
        save_file({"hidden": tensor.contiguous()}, path)
        return path, str(tensor.device)
