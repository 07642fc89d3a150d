"""How much memory a process holds: in all, and of single tensors that are maps of files (Linux)."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_STATUS = Path("/proc/self/status")
_PAGEMAP = Path("/proc/self/pagemap")
_FIELDS = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped", "VmHWM": "peak"}
_ENTRY = 8
_PRESENT = 1 << 63


def memory() -> dict[str, int]:
    """Bytes of this process: `resident`, of these `own` and `mapped` from files, and the `peak` so far."""
    lines = (line.partition(":") for line in _STATUS.read_text().splitlines())
    return {_FIELDS[name]: 1024 * int(value.split()[0]) for name, _, value in lines if name in _FIELDS}


def resident_share(tensors: Iterable[Tensor]) -> float:
    """The share of whole pages of CPU tensors that this process holds in memory."""
    pages = [entry for tensor in tensors for entry in _entries(tensor)]
    return sum(1 for entry in pages if entry & _PRESENT) / max(len(pages), 1)


def _entries(tensor: Tensor) -> tuple[int, ...]:
    size = mmap.PAGESIZE
    first, last = -(-tensor.data_ptr() // size), (tensor.data_ptr() + tensor.nbytes) // size
    if first >= last:
        return ()
    with _PAGEMAP.open("rb") as file:
        file.seek(first * _ENTRY)
        return struct.unpack(f"<{last - first}Q", file.read((last - first) * _ENTRY))
