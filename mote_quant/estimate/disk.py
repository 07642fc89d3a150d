"""What a run writes, and how much of it lies on the disk at a time."""

from __future__ import annotations

from mote_quant.estimate.memory import spilled
from mote_quant.estimate.report import Disk
from mote_quant.estimate.sizes import FLOAT, Sizes
from mote_quant.recipe.schema import Quantize, Train

OPTIMIZER = 2 * FLOAT
"""Bytes of Adam's states of a trained number."""
CHECKPOINTS = 10
"""Checkpoints of a training that does not say otherwise."""


def disk(sizes: Sizes, streamed: bool) -> Disk:
    """The output is written in one go at the end (streamed: stage by stage); states and checkpoints go before it.

    A checkpoint replaces the one before it once it is whole, and so does the state after a step.
    """
    output = sizes.result_bytes
    if streamed:
        return Disk(output, output, _temporary(sizes))
    most, kept, trainings = output, 0, iter(trained(sizes))
    steps = sizes.plan.recipe.pipeline
    for index, step in enumerate(steps):
        last = index + 1 == len(steps)
        own = checkpoint_bytes(next(trainings)) if isinstance(step.config, Train) else 0
        several = isinstance(step.config, Train) and checkpoints(step.config) > 1
        after = output if last else 0 if step.name == "upcycle" else state_bytes(sizes)
        most = max(most, kept + own * (2 if several else 1), kept + own + after)
        kept = after if after and not last else kept
    return Disk(output, most, _temporary(sizes))


def trained(sizes: Sizes) -> list[int]:
    """Numbers that each train step moves."""
    return [sum(row["trained"].values()) for row in sizes.plan.trained]


def checkpoint_bytes(count: int) -> int:
    """Weights and optimizer states of `count` trained numbers."""
    return (FLOAT + OPTIMIZER) * count


def checkpoints(config: Train) -> int:
    """How many a training writes."""
    return config.steps // (config.checkpoint_every or max(1, config.steps // CHECKPOINTS))


def state_bytes(sizes: Sizes) -> int:
    """The model between two steps, its experts in full precision."""
    return sizes.plan.dense.stored_bytes + sizes.experts_bytes


def _temporary(sizes: Sizes) -> int:
    configs = (step.config for step in sizes.plan.recipe.pipeline)
    return max((spilled(sizes, config) for config in configs if isinstance(config, Quantize)), default=0)
