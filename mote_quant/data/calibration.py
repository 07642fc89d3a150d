"""The samples quantization looks at: drawn under a seed, some of them kept aside to measure errors on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mote_quant.data.source import Sample, Source
from mote_quant.errors import DataError

HELD_OUT_SHARE = 8
"""One sample is held out for every so many that are calibrated with."""

Batch = dict[str, Tensor]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """Batches without labels: to calibrate with, and `held_out`, which no method sees. `note` is for the report."""

    batches: list[Batch]
    held_out: list[Batch]
    note: dict[str, Any] = field(default_factory=dict)


def calibration_batches(source: Source, samples: int, batch_size: int, seed: int, hold_out: bool = True) -> Drawn:
    """Draw `samples` different samples of `source.train` in an order that follows from `seed`, and an eighth more.

    Where there are no more, the held-out samples are taken out of those drawn; a single sample leaves nothing to hold
    out, nor does `hold_out=False`. A source with fewer samples than asked for is used whole, which is noted and logged.
    DataError for none.
    """
    found = len(source.train)
    if not found:
        raise DataError(f"{source.name} has no samples to calibrate with")
    order = torch.randperm(found, generator=torch.Generator().manual_seed(seed)).tolist()
    cut, end = _cuts(found, samples) if hold_out else (min(found, samples),) * 2
    batches = _collated(source, [source.train[index] for index in order[:cut]], batch_size)
    # One by one: the logits of a whole batch over a large vocabulary would be the largest tensor of all.
    held_out = _collated(source, [source.train[index] for index in order[cut:end]], 1)
    note: dict[str, Any] = {"samples": cut, "tokens": count_tokens(batches)}
    note |= {"held_out_samples": end - cut, "held_out_tokens": count_tokens(held_out)}
    if cut < samples:
        note["short"] = f"{samples} samples were asked for, {source.name} has {found}: calibrated with {cut} of them"
        _log.warning("%s", note["short"])
    return Drawn(batches, held_out, note)


def _cuts(found: int, samples: int) -> tuple[int, int]:
    """Where in the order calibration ends, and where what is held out ends."""
    cut = min(found, samples)
    aside = max(1, cut // HELD_OUT_SHARE)
    if found > cut:
        return cut, min(found, cut + aside)
    return (cut - aside, cut) if cut > 1 else (cut, cut)


def _collated(source: Source, chosen: Sequence[Sample], size: int) -> list[Batch]:
    batches = (source.collate(chosen[start : start + size]) for start in range(0, len(chosen), size))
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def count_tokens(batches: Sequence[Mapping[str, Tensor]]) -> int:
    """Tokens of the batches without padding."""
    return sum(_tokens(batch) for batch in batches)


def _tokens(batch: Mapping[str, Tensor]) -> int:
    mask = token_mask(batch)
    return batch["input_ids"].numel() if mask is None else int(mask.sum())


def token_mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Which positions are tokens and which padding, bool [rows, tokens]; None when every position is a token."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != batch["input_ids"].shape or bool(mask.all()):
        return None
    return mask.bool()
