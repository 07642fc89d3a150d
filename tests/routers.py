"""What a train step does to a router."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from torch import Tensor

from mote_quant.moe import blocks
from mote_quant.steps.train.callbacks import Watch
from tests import pico
from tests.mixtures import TERNARY, train_it, upcycled
from tests.sources import source_for


def gradient_of_router(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Tensor:
    """The router's gradient as the optimizer gets it, every sample being the same one."""
    kept: list[Tensor] = []

    class Spy(Watch):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            kept.append(next(iter(blocks(model).values())).gate.weight.grad.clone())

    monkeypatch.setattr(import_module("mote_quant.steps.train.run"), "Watch", Spy)
    model = pico.PICO["llama"]()
    source = source_for(model, samples=1)
    context = upcycled(model, TERNARY)
    context.open_data = lambda name, length: source
    train_it(model, context, **{"what": ["router"], "steps": 1, "max_grad_norm": 1e9, "warmup": 0.0} | settings)
    return kept[0]
