"""Is it any good: task metrics, the front, the picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from mote_quant.errors import DataError

if TYPE_CHECKING:
    from torch import nn

    from mote_quant.data.source import Sample, Source

__all__ = ["evaluate"]

_METRICS = {"text": "language", "vqa": "answers"}


def evaluate(
    model: nn.Module, source: Source, *, split: str = "test", limit: int | None = None, batch_size: int = 32
) -> dict[str, float]:
    """Measure `model` on a split of `source`.

    vqa: `accuracy` of greedily generated answers, `loss` a token of the true answers (nats). text: `loss` a token
    (nats), `perplexity`, `bits_per_byte`. The model is put in eval mode meanwhile. Raises DataError for an empty split.
    """
    samples: Sequence[Sample] = getattr(source, split)[:limit]
    if not samples:
        raise DataError(f"{source.name} has nothing in its {split} split to measure on")
    # Imported late: reports take the front from this package, and need no torch.
    from mote_quant.evaluate.mode import measured

    metric = import_module(f"mote_quant.evaluate.{_METRICS[source.kind]}")
    with measured(model):
        scores: dict[str, float] = metric.measure(model, source.collate, samples, batch_size)
    return scores
