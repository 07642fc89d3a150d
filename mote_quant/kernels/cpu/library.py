"""The compiled kernels, loaded once: which instruction set is in force, whose threads they use, how often they ran."""

from __future__ import annotations

import ctypes
import logging
import os
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mote_quant.errors import KernelError
from mote_quant.kernels.cpu.build import LIBRARY

ABI = 1
"""What `MOTE_ABI` in src/abi.h must say."""
CHOICE = "MOTE_QUANT_CPU"
"""The environment variable that forces a level, or `reference` for none of this."""
REFERENCE = "reference"
HOW_TO_BUILD = "install a C++ compiler and run: python -m mote_quant.kernels.cpu.build"

_log = logging.getLogger(__name__)


class Level(IntEnum):
    """As in src/level.h; a later one is faster."""

    portable = 0
    avx2 = 1
    avxvnni = 2
    avx512 = 3
    amx = 4
    neon = 5


class Op(IntEnum):
    """As in src/counters.h."""

    ternary_matmul = 0
    ternary_experts = 1
    int_matmul = 2
    quantize = 3


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they are not built or not wanted; KernelError for a level that cannot be had."""
    choice = os.environ.get(CHOICE, "")
    if choice == REFERENCE:
        return None
    if choice and choice not in Level.__members__:
        raise KernelError(f"{CHOICE}={choice}: levels are {', '.join(Level.__members__)}, and {REFERENCE}")
    found = _load(LIBRARY)
    if found is None and choice:
        raise KernelError(f"{CHOICE}={choice}: there are no CPU kernels here; {HOW_TO_BUILD}")
    if found is not None:
        _share_threads(found)
        if choice:
            _force(found, choice)
        _log.info("CPU kernels: %s", Level(found.mote_level()).name)
    return found


def why_not() -> str | None:
    """Why there are no kernels, and how to get them; None where there are."""
    if library() is not None:
        return None
    if os.environ.get(CHOICE) == REFERENCE:
        return f"{CHOICE}={REFERENCE} asks for the torch reference"
    if LIBRARY.is_file():
        return f"{LIBRARY.name} belongs to another version or machine; {HOW_TO_BUILD}"
    return f"they were not compiled; {HOW_TO_BUILD}"


def level() -> Level | None:
    """The level in force; None without kernels."""
    found = library()
    return None if found is None else Level(found.mote_level())


def levels() -> list[Level]:
    """The levels that this build and processor support, slowest first."""
    found = library()
    return [] if found is None else [level for level in Level if found.mote_supports(level)]


def set_level(level: Level) -> None:
    """Put a level in force, for this process; KernelError where it is not supported."""
    found = library()
    if found is None:
        raise KernelError(f"no CPU kernels: {why_not()}")
    _force(found, level.name)


def calls() -> dict[str, int]:
    """How often each native operation ran in this process."""
    found = library()
    return {op.name: 0 if found is None else int(found.mote_calls(op)) for op in Op}


def _load(path: Path) -> ctypes.CDLL | None:
    if not path.is_file():
        _log.warning("mote-quant's CPU kernels were not compiled: the slow torch reference is used. %s", HOW_TO_BUILD)
        return None
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        _log.warning("mote-quant's CPU kernels cannot be loaded (%s): the slow torch reference is used", error)
        return None
    found.mote_calls.restype = ctypes.c_int64
    if found.mote_abi() != ABI:
        _log.warning("%s is of another version: the slow torch reference is used. %s", path.name, HOW_TO_BUILD)
        return None
    return found


def _force(found: ctypes.CDLL, name: str) -> None:
    known = [level.name for level in Level if found.mote_supports(level)]
    if name not in known or found.mote_set_level(Level[name]):
        raise KernelError(f"{CHOICE}={name}: this build and processor have {', '.join(known)}, and {REFERENCE}")


def _share_threads(found: ctypes.CDLL) -> None:
    """Let the kernels run on torch's own OpenMP threads: a second team would compete with them for the cores."""
    start = _openmp_of_torch()
    if start is not None:
        found.mote_set_runner(ctypes.cast(start, ctypes.c_void_p))


def _openmp_of_torch() -> Any:
    """GOMP_parallel of the OpenMP runtime that torch uses; LLVM's and Intel's answer to GNU's name too."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # What a library depends on is searched with it.
        return getattr(ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY), "GOMP_parallel", None)
    except OSError:
        return None
