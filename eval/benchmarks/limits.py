"""The limits of the machine, by a few lines of C++ (limits.cpp): reading memory, and multiplying in registers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("limits.cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
_TRIES, _CHAINS = 7, 16


@cache
def native() -> ctypes.CDLL | None:
    """limits.cpp, compiled by $CXX or c++; None where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "limits.so"
        command = [os.environ.get("CXX", "c++"), *_FLAGS, str(_SOURCE), "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        library = ctypes.CDLL(str(target))
    library.read_sweep.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    library.read_sweep.restype = ctypes.c_uint64
    for peak in (library.int8_peak, library.bf16_peak):
        peak.argtypes, peak.restype = (ctypes.c_int64, ctypes.c_void_p), ctypes.c_int64
    return library


def sweep(data: Tensor) -> Callable[[], object]:
    """Reads all of `data` (contiguous), as fast as can be, and does nothing else."""
    library = native()
    flat = data.view(-1).view(torch.uint8)
    if library is None:
        numbers = flat[: len(flat) // 4 * 4].view(torch.float32)
        return lambda: numbers.sum()
    address, size = flat.data_ptr(), flat.numel()
    return lambda: library.read_sweep(address, size)


def read_bandwidth(threads: int, bytes_each: int) -> float:
    """GB/s that so many threads read together: the best of a few sweeps of ours and of torch's sum."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    parts = [torch.ones(bytes_each // 4) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        run = map if threads == 1 else pool.map

        def seconds(calls: list[Callable[[], object]]) -> float:
            return _best(lambda: list(run(lambda call: call(), calls)), clock)

        best = min(seconds([sweep(part) for part in parts]), seconds([part.sum for part in parts]))
    return threads * bytes_each / best / 1e9


def peak(kind: str, rounds: int = 2_000_000) -> float | None:
    """Gop/s of one thread's dot products of `int8` or `bf16`; None where there is no instruction that we know."""
    library = native()
    if library is None:
        return None
    call = getattr(library, f"{kind}_peak")
    numbers = torch.arange(_CHAINS, dtype=torch.int32)
    operations = int(call(rounds, numbers.data_ptr()))
    return operations / _best(lambda: call(rounds, numbers.data_ptr()), time.thread_time) / 1e9 if operations else None


def _best(call: Callable[[], object], clock: Callable[[], float]) -> float:
    seconds = []
    for _ in range(_TRIES):
        started = clock()
        call()
        seconds.append(clock() - started)
    return min(seconds)
