"""`estimate`: a plan, part by part, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from mote_quant.estimate import memory, work
from mote_quant.estimate.disk import disk, trained
from mote_quant.estimate.rates import Rates
from mote_quant.estimate.report import Estimate, Part, Seconds
from mote_quant.estimate.sizes import Sizes, largest
from mote_quant.machine import Machine
from mote_quant.planning import Plan
from mote_quant.recipe.schema import Quantize, Train


def estimate(
    plan: Plan, skeleton: nn.Module, machine: Machine, rates: Rates | None = None, why_not: str | None = None
) -> Estimate:
    """What carrying out `plan` takes on `machine`; without `rates` no word of time.

    `skeleton` is the meta model that the plan was made on, as it left it. `why_not` says why the run holds the whole
    model in memory; None for one that goes layer by layer.
    """
    sizes = Sizes(plan, skeleton)
    parts = _streamed(sizes, rates) if why_not is None else _in_memory(sizes, rates, machine.accelerator is not None)
    return Estimate(tuple(parts), disk(sizes, why_not is None), machine, rates, why_not)


def _streamed(sizes: Sizes, rates: Rates | None) -> Iterator[Part]:
    config = next(step.config for step in sizes.plan.recipe.pipeline if isinstance(step.config, Quantize))
    table = round(largest(sizes.held) * sizes.width)
    yield Part("loading", memory.RUNTIME + table, _timed(work.loading, sizes, rates))
    name = " and ".join(step.name for step in sizes.plan.recipe.pipeline)
    seconds = _timed(partial(work.streaming, config=config), sizes, rates)
    yield Part(f"{name}, layer by layer", memory.streaming(sizes, config), seconds)


def _in_memory(sizes: Sizes, rates: Rates | None, accelerated: bool) -> Iterator[Part]:
    yield Part("loading", memory.loading(sizes), _timed(work.loading, sizes, rates))
    counts, moved = iter(trained(sizes)), False
    for step in sizes.plan.recipe.pipeline:
        if isinstance(step.config, Train):
            count, moved = next(counts), accelerated
            seconds = _timed(partial(work.training, config=step.config, trained=count), sizes, rates)
            yield Part("train", memory.training(sizes, step.config, count), seconds, moved)
        elif isinstance(step.config, Quantize):
            seconds = _timed(partial(work.quantizing, config=step.config), sizes, rates)
            yield Part("quantize", memory.quantizing(sizes, step.config), seconds, moved)
        else:
            yield Part("upcycle", memory.upcycling(sizes), _timed(work.upcycling, sizes, rates))
    yield Part("saving", memory.saving(sizes), _timed(work.saving, sizes, rates))


def _timed(count: Callable[..., Seconds], sizes: Sizes, rates: Rates | None) -> Seconds | None:
    return None if rates is None else count(sizes, rates=rates)
