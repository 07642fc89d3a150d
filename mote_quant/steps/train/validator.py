"""The loss on the validation split, of a model in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from mote_quant.data.source import IGNORED, Source, none_held_out
from mote_quant.moe import blocks
from mote_quant.parallel import at_rest
from mote_quant.qat.linear import QatLinear


class Validator:
    """The mean loss (nats a label) over `samples` spread over the validation split, always in the same batches.

    With `quantized` weights that are only partly quantized yet (a ramp) count as what they are on their way to.
    DataError for a split that is empty.
    """

    def __init__(self, model: nn.Module, source: Source, samples: int, batch_size: int, quantized: bool) -> None:
        if not len(source.validation):
            raise none_held_out(source.name)
        size = len(source.validation)
        count = min(samples, size)
        chosen = [source.validation[index * size // count] for index in range(count)]
        self._batches = [chosen[start : start + batch_size] for start in range(0, count, batch_size)]
        self._model = model
        self._collate = source.collate
        self._quantized = quantized

    @torch.no_grad()
    def loss(self) -> float:
        """As the model is now; nothing of it, nor what it remembers of its last batch, changes."""
        total, labels = 0.0, 0
        device = next(self._model.parameters()).device
        with undisturbed(self._model, self._quantized):
            for batch in self._batches:
                given = {name: tensor.to(device) for name, tensor in self._collate(batch).items()}
                expected = given.pop("labels")[:, 1:]
                logits = cast(Any, self._model)(**given, use_cache=False).logits[:, :-1]
                known = expected != IGNORED
                total += float(F.cross_entropy(logits[known].float(), expected[known], reduction="sum"))
                labels += int(known.sum())
        return total / max(labels, 1)


@contextmanager
def undisturbed(model: nn.Module, quantized: bool) -> Iterator[None]:
    """Inside, `model` is in eval mode (and fully quantized); afterwards as before, its last routing included."""
    mode = model.training
    mixtures = [cast(Any, block) for block in blocks(model).values()]
    seen = [block._last for block in mixtures]
    layers = [module for module in model.modules() if isinstance(module, QatLinear)] if quantized else []
    strengths = [layer.strength for layer in layers]
    try:
        for layer in layers:
            layer.strength = 1.0
        model.eval()
        yield
    finally:
        at_rest(model)
        model.train(mode)
        for layer, strength in zip(layers, strengths, strict=True):
            layer.strength = strength
        for block, last in zip(mixtures, seen, strict=True):
            block._last = last
