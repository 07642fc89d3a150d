"""How far a model has moved from another: divergence of what they say next, and how often they say the same."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.data.source import IGNORED, Source
from mote_quant.errors import DataError, ModelError
from mote_quant.evaluate.language import runs, to_device
from mote_quant.evaluate.mode import measured


def compare(
    model: nn.Module,
    reference: nn.Module,
    source: Source,
    *,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 32,
) -> dict[str, float]:
    """`kl`: KL(reference || model), nats a labelled token; `agreement`: share of them with the same likeliest token.

    A batch at a time, in float32. DataError where nothing is labelled, ModelError for models of other vocabularies.
    """
    nats, same, tokens = 0.0, 0, 0
    with measured(model, reference):
        for run in runs(getattr(source, split)[:limit], batch_size):
            batch = source.collate(run)
            ours, theirs = _log_probabilities(model, batch), _log_probabilities(reference, batch)
            nats += _divergence(ours, theirs.to(ours.device))
            same += int((ours.argmax(-1).cpu() == theirs.argmax(-1).cpu()).sum())
            tokens += len(ours)
    if not tokens:
        raise DataError(f"{source.name} has nothing in its {split} split to compare on")
    return {"kl": nats / tokens, "agreement": same / tokens}


def _log_probabilities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Float32 [labelled tokens, vocabulary]."""
    inputs = to_device({name: value for name, value in batch.items() if name != "labels"}, model)
    logits = cast(Any, model)(**inputs, use_cache=False).logits[:, :-1]
    labelled = (batch["labels"][:, 1:] != IGNORED).to(logits.device)
    return F.log_softmax(logits[labelled].float(), dim=-1)


def _divergence(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ModelError(
            f"models with {ours.shape[-1]} and {theirs.shape[-1]} tokens in their vocabularies cannot be compared"
        )
    return float(F.kl_div(ours, theirs, log_target=True, reduction="sum"))
