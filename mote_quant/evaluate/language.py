"""Held-out text: loss, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.data.source import IGNORED, Collate, Sample


def runs(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    """`samples` in runs of `size`."""
    return (samples[start : start + size] for start in range(0, len(samples), size))


def to_device(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The batch where the model is."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def summed_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, int]:
    """Total negative log-likelihood (nats, in float32) of the labelled tokens, and how many there are."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = cast(Any, model)(**inputs, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return float(total), int((labels != IGNORED).sum())


def mean_loss(model: nn.Module, collate: Collate, samples: Sequence[Sample], batch_size: int = 32) -> float:
    """Nats a labelled token, of any kind of source. Without a gradient, if the caller says so."""
    pairs = [summed_loss(model, to_device(collate(run), model)) for run in runs(samples, batch_size)]
    return sum(nats for nats, _ in pairs) / max(sum(tokens for _, tokens in pairs), 1)


def measure(model: nn.Module, collate: Collate, samples: Sequence[Sample], batch_size: int) -> dict[str, float]:
    """`loss` (nats a token), `perplexity`, and `bits_per_byte` where samples know their bytes."""
    pairs = [summed_loss(model, to_device(collate(run), model)) for run in runs(samples, batch_size)]
    nats, tokens = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    loss = nats / max(tokens, 1)
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": float(tokens)}
    size = sum(int(sample.get("bytes", 0)) for sample in samples)
    return scores | ({"bits_per_byte": nats / math.log(2) / size} if size else {})
