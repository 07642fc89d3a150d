"""Whether a model keeps packed samples apart, found by trying: two samples in a row must give what each gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import cycle, islice
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from mote_quant.data.packing.batches import Form, PackedRows
from mote_quant.data.source import Sample
from mote_quant.data.text import collate_answers_text
from mote_quant.errors import DataError

_FIRST = 2
"""Tokens after the border, on which a short convolution shows."""
_TOLERANCE = {None: 0.01, torch.bfloat16: 0.1}
"""How much of the mistake may be rounding, by the type that is computed in."""
_collate = partial(collate_answers_text, pad=0)


def form_for(model: nn.Module, ids: list[int], room: int, autocast: torch.dtype | None = None) -> Form:
    """The form in which `model` keeps samples in rows of `room` tokens apart; `ids` are some that it takes.

    `autocast` is the type that training computes in. Costs four forward passes of a row. DataError where there is none:
    attention by distance alone, a state or a convolution that runs on, no positions to begin again.
    """
    cut = max(_FIRST, room // 4)
    tokens = list(islice(cycle(ids), room))
    if room - cut < _FIRST:
        raise DataError(f"train.pack: rows of {room} tokens have no room for two samples; raise max_length")
    samples = [_sample(tokens[:cut]), _sample(tokens[cut:])]
    with torch.no_grad(), _as_measured(model, autocast):
        alone = torch.cat([_logits(model, _collate([sample])) for sample in samples])
        # What it would be if they saw each other: the size of the mistake that is looked for.
        mistaken = _difference(_logits(model, _collate([_sample(tokens)])), alone, cut)
        for form in get_args(Form):
            packed = _tried(model, PackedRows(_collate, form)([samples]))
            if packed is not None and _difference(packed, alone, cut) <= _TOLERANCE[autocast] * mistaken:
                return cast(Form, form)
    raise DataError(
        f"train.pack: {type(model).__name__} would let packed samples see each other (a state or a convolution that "
        "runs on, or attention by distance alone): leave pack out; bucket saves padding too"
    )


def _sample(ids: list[int]) -> Sample:
    return {"input_ids": ids, "labels": ids}


def _difference(logits: Tensor, right: Tensor, border: int) -> float:
    """How far [tokens, vocabulary] are apart: of the usual token, or of the first ones behind the border.

    A few others may be far: what is rounded differently can be routed differently.
    """
    apart = (logits - right).abs().amax(-1)
    return max(apart.median().item(), apart[border : border + _FIRST].max().item())


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of the first row, float32 [tokens, vocabulary]."""
    device = next(model.parameters()).device
    given = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    logits: Tensor = cast(Any, model)(**given, use_cache=False).logits
    return logits[0].float()


def _tried(model: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
    """The logits, or None from a model that does not take such a batch."""
    # What a model raises for arguments it does not expect is up to its author.
    try:
        return _logits(model, batch)
    except Exception:
        return None


@contextmanager
def _as_measured(model: nn.Module, autocast: torch.dtype | None) -> Iterator[None]:
    """Inside, `model` is in eval mode and computes as in training."""
    mode, device = model.training, next(model.parameters()).device.type
    model.eval()
    try:
        with torch.autocast(device, autocast) if autocast else nullcontext():
            yield
    finally:
        model.train(mode)
