"""What a run writes, and how much of it lies on the disk at a time."""

from __future__ import annotations

from typing import Any

from mote_quant.estimate.formulas import length
from mote_quant.estimate.memory import spilled
from mote_quant.estimate.report import Disk
from mote_quant.estimate.sizes import FLOAT, Sizes
from mote_quant.hf.cached_teacher import Kept
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
    return Disk(output, most, _temporary(sizes), sum(lessons(sizes, step.config) for step in steps))


def lessons(sizes: Sizes, config: Any) -> int:
    """The most that a teacher's cache takes: every position of every step has a label, and none is seen twice."""
    if not isinstance(config, Train) or config.distill is None or config.distill.cache is None:
        return 0
    kept = Kept(config.distill.top_k, config.distill.temperature, bool(config.distill.hidden))
    steps = max(config.steps, config.search.steps if config.search else 0)
    # The first token of a row is not predicted.
    labels = steps * config.gradient_accumulation * config.batch_size * (length(config) - 1)
    width, layers = sizes.hidden, len(sizes.layers)
    return kept.bytes_of(labels, vocabulary=sizes.vocabulary, layers=layers, width=width, itemsize=FLOAT)


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
