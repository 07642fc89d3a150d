"""What the benchmark ran on: bench-machine.json."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.benchmarks import ggml, limits
from mote_quant.kernels.cpu import library

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512vbmi", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_PACKAGES = ("torch", "transformers", "torchao", "bitsandbytes", "llama-cpp-python", "triton")


def machine(sweep_bytes: int) -> dict[str, Any]:
    """Processor, kernels, versions and what it can do at best, the memory by reading so many bytes."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_line("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "cpu_features": features(),
        "level": getattr(library.level(), "name", "reference"),
        "levels": [level.name for level in library.levels()],
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "ggml": _ggml(),
        "read_gb_per_s": {str(threads): limits.read_bandwidth(threads, sweep_bytes) for threads in (1, 2)},
        "int8_peak_gop_per_s": limits.peak("int8"),
        "bf16_peak_gop_per_s": limits.peak("bf16"),
    }


def features() -> list[str]:
    """Instruction sets of this processor that matter here."""
    present = set((_cpu_line("flags") or _cpu_line("Features") or "").split())
    return [name for name in _FEATURES if name in present]


def has_amx() -> bool:
    """Whether the targets for machines with AMX apply."""
    return "amx_int8" in features()


def _cpu_line(name: str) -> str | None:
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ggml() -> dict[str, Any] | str:
    folder = ggml.find()
    if isinstance(folder, str):
        return folder
    found = ggml.library(folder)
    return {"version": found.version, "built_for": found.features}
