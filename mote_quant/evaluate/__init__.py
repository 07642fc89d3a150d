"""Is it any good: task metrics, the front, the picture."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mote_quant.data.source import Sample, Source
from mote_quant.errors import DataError
from mote_quant.evaluate import answers, language
from mote_quant.evaluate.mode import measured

__all__ = ["evaluate"]

_METRICS = {"text": language.measure, "vqa": answers.measure}


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
    with measured(model):
        return _METRICS[source.kind](model, source.collate, samples, batch_size)
