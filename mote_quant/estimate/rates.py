"""How fast this machine is at what a run consists of, measured in well under a second."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mote_quant.machine import existing
from mote_quant.recipe.schema import IntegerBits

_CHUNK = 16 * 2**20
_COPIED = 4 * _CHUNK
"""Large enough that its memory comes fresh from the system, as that of large weights does."""
_ENOUGH = 0.03
"""Seconds after which a measurement is good enough, if there were `_TRIES`."""
_TRIES = 4
_SIDE = 768


@dataclass(frozen=True)
class Rates:
    """Bytes a second for read, write, copy and hash; floating-point operations a second; weights rounded a second."""

    read: float
    write: float
    copy: float
    hash: float
    float32: float
    bfloat16: float
    rounding: float

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return {name: round(value) for name, value in asdict(self).items()}


def measure_rates(model: Path, output: Path) -> Rates:
    """Measure, reading some of the largest file in folder `model` and writing 16 MiB (removed again) near `output`.

    What the system holds in its cache reads faster than the rest; a folder that cannot be read or written counts as
    fast as memory.
    """
    copied = torch.zeros(_COPIED, dtype=torch.uint8)
    copy = _rate(copied.clone, _COPIED)
    data = bytes(_CHUNK)
    return Rates(
        read=_read(model) or copy,
        write=_write(existing(output)) or copy,
        copy=copy,
        hash=_rate(lambda: hashlib.sha256(data), _CHUNK),
        float32=_products(torch.float32),
        bfloat16=_products(torch.bfloat16),
        rounding=_rounding(),
    )


def _rate(work: Callable[[], object], amount: float) -> float:
    """`amount` a second: the best of some tries, the first of which warms up."""
    work()
    taken: list[float] = []
    while len(taken) < _TRIES or sum(taken) < _ENOUGH:
        started = time.perf_counter()
        work()
        taken.append(max(time.perf_counter() - started, 1e-9))
    return amount / min(taken)


def _products(dtype: torch.dtype) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = _SIDE if device == "cpu" else 4 * _SIDE
    factor = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> None:
        torch.mm(factor, factor)
        if device == "cuda":
            torch.cuda.synchronize()

    return _rate(multiply, 2 * side**3)


def _rounding() -> float:
    from mote_quant.steps.quantize.methods import rtn

    weight, spec = torch.randn(256, 2048), IntegerBits(format="int4", group_size=128)
    return _rate(lambda: rtn(weight, spec), weight.numel())


def _read(folder: Path) -> float | None:
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size) if folder.is_dir() else []
    if not files or files[-1].stat().st_size < _CHUNK:
        return None
    started = time.perf_counter()
    with files[-1].open("rb", buffering=0) as file:
        file.seek((files[-1].stat().st_size - _CHUNK) // 2)
        count = len(file.read(_CHUNK))
    return count / max(time.perf_counter() - started, 1e-9)


def _write(folder: Path) -> float | None:
    data = os.urandom(_CHUNK)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return _CHUNK / max(time.perf_counter() - started, 1e-9)
    except OSError:
        return None
