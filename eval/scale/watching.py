"""How much memory a process holds: in all, and of single tensors that are maps of files."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from torch import Tensor

_STATUS = Path("/proc/self/status")
_PAGEMAP = Path("/proc/self/pagemap")
_FIELDS = {"VmRSS:": "resident", "RssAnon:": "own", "RssFile:": "mapped", "VmHWM:": "peak"}
_ENTRY = 8
_PRESENT = 1 << 63


def memory() -> dict[str, int]:
    """Bytes of this process: `resident`, of these `own` and `mapped` from files, and the `peak` so far (Linux)."""
    lines = (line.split() for line in _STATUS.read_text().splitlines())
    return {_FIELDS[name]: 1024 * int(kib) for name, kib, *_ in lines if name in _FIELDS}


def resident_share(tensor: Tensor) -> float:
    """The share of a CPU tensor's whole pages that this process holds in memory (Linux)."""
    size = mmap.PAGESIZE
    first, last = -(-tensor.data_ptr() // size), (tensor.data_ptr() + tensor.nbytes) // size
    if first >= last:
        return 0.0
    with _PAGEMAP.open("rb") as file:
        file.seek(first * _ENTRY)
        entries = struct.unpack(f"<{last - first}Q", file.read((last - first) * _ENTRY))
    return sum(1 for entry in entries if entry & _PRESENT) / (last - first)
