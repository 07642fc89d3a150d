"""The parts of the benchmark, and how they are run: one that fails does not take the others with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from eval.benchmarks.rows import Row, with_means
from eval.benchmarks.scale import QUICK, Scale

_log = logging.getLogger(__name__)


@dataclass
class Result:
    """Rows by part, what was skipped and why, and what failed."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _matmul(scale: Scale, result: Result) -> list[Row]:
    from eval.benchmarks import matmul

    result.skipped |= matmul.skipped()
    return matmul.rows(scale)


def _layer(scale: Scale, result: Result) -> list[Row]:
    from eval.benchmarks import layer

    return layer.rows(scale)


def _model(scale: Scale, result: Result) -> list[Row]:
    from eval.benchmarks import model

    return model.rows(scale)


def _qat(scale: Scale, result: Result) -> list[Row]:
    from eval.benchmarks import qat

    return with_means([Row.of(values) for values in qat.rows(qat.QUICK if scale is QUICK else qat.FULL)])


def _gpu(scale: Scale, result: Result) -> list[Row]:
    if not torch.cuda.is_available():
        result.skipped["gpu"] = "not measured: there is no GPU here"
        return []
    from eval.benchmarks import gpu

    return [Row.of(values) for values in gpu.rows()]


PARTS: dict[str, Callable[[Scale, Result], list[Row]]] = {
    "matmul": _matmul, "layer": _layer, "model": _model, "qat": _qat, "gpu": _gpu
}  # fmt: skip


def run(names: Iterable[str], scale: Scale) -> Result:
    """The rows of the parts so named."""
    result = Result()
    for name in names:
        _log.info("%s …", name)
        try:
            result.rows[name] = PARTS[name](scale, result)
        except Exception as error:
            _log.exception("%s failed", name)
            result.failed[name] = f"failed: {type(error).__name__}: {error}"
    return result
