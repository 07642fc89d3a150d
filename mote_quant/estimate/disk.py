"""What a run writes, and how much of it lies on the disk at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mote_quant.estimate.formulas import length, state_size
from mote_quant.estimate.memory import spilled
from mote_quant.estimate.report import Disk
from mote_quant.estimate.sizes import FLOAT, Sizes
from mote_quant.hf.cached_teacher import Kept
from mote_quant.recipe.schema import Quantize, Train, trains

CHECKPOINTS = 10
"""Checkpoints of a training that does not say otherwise."""


def disk(sizes: Sizes, streamed: bool) -> Disk:
    """The output is written in one go at the end (streamed: stage by stage); states and checkpoints go before it.

    A checkpoint replaces the oldest of those that are kept once it is whole, and so does the state after a step.
    """
    output = sizes.result_bytes
    if streamed:
        return Disk(output, output, _temporary(sizes))
    most, kept, rows = output, 0, iter(sizes.plan.trained)
    steps = sizes.plan.recipe.pipeline
    for index, step in enumerate(steps):
        last = index + 1 == len(steps)
        during, left = (
            _training(sizes, step.config, next(rows)["trained"]) if isinstance(step.config, Train) else (0, 0)
        )
        after = output if last else 0 if step.name == "upcycle" else state_bytes(sizes)
        most = max(most, kept + during, kept + left + after)
        kept = after if after and not last else kept
    return Disk(output, most, _temporary(sizes), sum(lessons(sizes, step.config) for step in steps))


def _training(sizes: Sizes, config: Train, numbers: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of what a training keeps on the disk: at most, and at its end."""
    weights, states = held(sizes, config, numbers)
    # A guard goes back behind a spike that the newest may have seen.
    stays, written = 2 if config.guard else 1, checkpoints(config)
    best = weights if config.validation and config.validation.keep_best else 0
    return ((weights + states) * min(written, stays + 1) + 2 * best, (weights + states) * min(written, stays) + best)


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


def held(sizes: Sizes, config: Train, numbers: Mapping[str, int]) -> tuple[int, int]:
    """At most how many bytes the `numbers` (by role) that `config` trains take, and their optimizer states."""
    total = sum(numbers.values())
    latent = any(trains(spec) for spec in sizes.plan.formats.values()) and config.latents == "bfloat16"
    weights = FLOAT * total - (FLOAT // 2 * numbers.get("routed", 0) if latent else 0)
    return weights, math.ceil(state_size(config) * total)


def checkpoints(config: Train) -> int:
    """How many a training writes."""
    return config.steps // (config.checkpoint_every or max(1, config.steps // CHECKPOINTS))


def state_bytes(sizes: Sizes) -> int:
    """The model between two steps, its experts in full precision."""
    return sizes.plan.dense.stored_bytes + sizes.experts_bytes


def _temporary(sizes: Sizes) -> int:
    configs = (step.config for step in sizes.plan.recipe.pipeline)
    return max((spilled(sizes, config) for config in configs if isinstance(config, Quantize)), default=0)
