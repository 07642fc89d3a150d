"""What computes here: processor, compiler, accelerator."""

from __future__ import annotations

import os
import platform
import shlex
from pathlib import Path
from typing import Any

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm"),
)
"""Instruction sets that a kernel here, or torch, is faster with."""


def processor() -> dict[str, Any]:
    """Model, machine, cores this process may use, and what of `_FEATURES` they have."""
    known = _cpuinfo()
    flags = set((known.get("flags") or known.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": known.get("model name") or platform.processor() or None,
        "machine": platform.machine(),
        "cores": cores,
        "features": [feature for feature in _FEATURES if feature in flags],
    }


def compiler() -> dict[str, str | None]:
    """The command of a C++ compiler, or the reason why there is none."""
    from mote_quant.kernels.cpu.build import BuildError
    from mote_quant.kernels.cpu.build import compiler as find

    try:
        return {"command": shlex.join(find()), "reason": None}
    except BuildError as error:
        return {"command": None, "reason": str(error)}


def accelerators() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees: name, bytes of memory, compute capability."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"name": properties.name, "memory": properties.total_memory, "capability": capability})
    return found


def _cpuinfo() -> dict[str, str]:
    """What is said of the first core."""
    if not _CPUINFO.exists():
        return {}
    first = _CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
