"""How a model's routers spread tokens over its experts, on data they were not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant import moe
from mote_quant.data.source import Source
from mote_quant.evaluate.language import runs, to_device
from mote_quant.evaluate.mode import measured
from mote_quant.moe.router import Choice


def routing(
    model: nn.Module, source: Source, *, split: str = "test", limit: int | None = None, batch_size: int = 32
) -> dict[str, float]:
    """Means over the mixture layers: `load_min`, `load_max` (shares of the choices that fell on the least and the most
    asked expert), `entropy` of a token's router (0..1: 1 is undecided), `balance` (1.0 is uniform).

    Padding is not counted. Empty for a model without mixture layers, or without samples.
    """
    tallies = {name: _Tally(block.layout.experts) for name, block in moe.blocks(model).items()}
    samples = getattr(source, split)[:limit]
    if not tallies or not samples:
        return {}
    with measured(model):
        for run in runs(samples, batch_size):
            batch = to_device(source.collate(run), model)
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).flatten().bool()
            with _counting(model, tallies, real):
                cast(Any, model)(**inputs, use_cache=False)
    layers = [tally.scores() for tally in tallies.values()]
    return {name: fmean(layer[name] for layer in layers) for name in layers[0]}


class _Tally:
    """Sums over the tokens of one layer: choices and probabilities [E], entropies in nats."""

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.choices = torch.zeros(experts, dtype=torch.float64)
        self.probability = torch.zeros(experts, dtype=torch.float64)
        self.entropy = 0.0

    def add(self, choice: Choice, real: Tensor) -> None:
        """Count the tokens of which `real` [T] is true."""
        p = choice.probabilities[real].double()
        self.tokens += len(p)
        self.choices += torch.bincount(choice.experts[real].flatten(), minlength=p.shape[1]).cpu()
        self.probability += p.sum(dim=0).cpu()
        self.entropy += float(torch.special.entr(p).sum())

    def scores(self) -> dict[str, float]:
        """Of all tokens together."""
        load, experts = self.choices / self.choices.sum(), len(self.choices)
        return {
            "load_min": float(load.min()),
            "load_max": float(load.max()),
            "entropy": self.entropy / self.tokens / math.log(experts) if experts > 1 else 0.0,
            "balance": float(experts * (load * self.probability / self.tokens).sum()),
        }


@contextmanager
def _counting(model: nn.Module, tallies: dict[str, _Tally], real: Tensor) -> Iterator[None]:
    """Inside, the choices of every router are tallied, for the tokens that are `real` [T]."""
    with ExitStack() as stack:
        for name, block in moe.blocks(model).items():
            stack.callback(block.gate.register_forward_hook(_adding(tallies[name], real)).remove)
        yield


def _adding(tally: _Tally, real: Tensor) -> Callable[[nn.Module, Any, Choice], None]:
    return lambda _router, _inputs, choice: tally.add(choice, real.to(choice.experts.device))
