"""What this machine has to offer right now."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),)


@dataclass(frozen=True)
class Machine:
    """Bytes of memory and disk, threads, and the accelerator (None without one). None: the system does not say."""

    total_memory: int | None
    free_memory: int | None
    free_disk: int | None
    threads: int
    accelerator: str | None = None
    accelerator_total: int | None = None
    accelerator_free: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def this_machine(folder: Path) -> Machine:
    """This machine, with the disk that `folder` (or its nearest parent that is there) lies on."""
    import torch

    total, free = memory()
    name, device_total, device_free = accelerator()
    return Machine(total, free, free_disk(folder), torch.get_num_threads(), name, device_total, device_free)


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory: all of it, and what a new process could take; no more than a container may."""
    known = _meminfo()
    total, free = known.get("MemTotal"), known.get("MemAvailable")
    for limit, used in _CGROUPS:
        allowed, taken = _number(limit), _number(used)
        if allowed is not None and total is not None and free is not None:
            total, free = min(total, allowed), min(free, max(allowed - (taken or 0), 0))
    return total, free


def free_disk(folder: Path) -> int | None:
    """Free bytes where `folder` lies or will lie."""
    try:
        return shutil.disk_usage(existing(folder)).free
    except OSError:
        return None


def existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that is there."""
    absolute = folder.absolute()
    return next((place for place in (absolute, *absolute.parents) if place.is_dir()), Path(absolute.anchor))


def accelerator() -> tuple[str | None, int | None, int | None]:
    """Name, memory and free memory of the first CUDA device; all None without one."""
    import torch

    if not torch.cuda.is_available():
        return None, None, None
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.get_device_name(), total, free


def _meminfo() -> dict[str, int]:
    """Bytes by name; without /proc, all memory from sysconf where that knows it."""
    if _MEMINFO.exists():
        rows = (line.split() for line in _MEMINFO.read_text().splitlines())
        return {row[0].removesuffix(":"): 1024 * int(row[1]) for row in rows if len(row) == 3}
    try:
        return {"MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    except (ValueError, OSError, AttributeError):
        return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
