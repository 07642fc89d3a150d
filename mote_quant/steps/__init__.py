"""The pipeline's verbs, in one table: a folder each, with a function `run(model, config, context) -> model`."""

from __future__ import annotations

from mote_quant.steps import quantize, train, upcycle
from mote_quant.steps.base import Context, Progress, Silent, Step

RUN: dict[str, Step] = {"upcycle": upcycle.run, "train": train.run, "quantize": quantize.run}

__all__ = ["RUN", "Context", "Progress", "Silent", "Step"]
