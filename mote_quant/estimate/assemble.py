"""`estimate`: a plan, part by part, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import nn

from mote_quant.estimate import memory, work
from mote_quant.estimate.disk import disk
from mote_quant.estimate.rates import Rates
from mote_quant.estimate.report import Estimate, Part, Seconds
from mote_quant.estimate.sizes import Sizes, largest
from mote_quant.estimate.training import Training
from mote_quant.machine import Machine
from mote_quant.parallel.sharings import Sharding
from mote_quant.planning import Plan
from mote_quant.recipe.schema import Quantize, Train


def estimate(
    plan: Plan,
    skeleton: nn.Module,
    machine: Machine,
    rates: Rates | None = None,
    why_not: str | None = None,
    processes: int = 1,
    shardings: Sequence[Sharding] = ("ddp",),
) -> Estimate:
    """What carrying out `plan` takes on `machine`; without `rates` no word of time.

    `skeleton` is the meta model that the plan was made on, as it left it. `why_not` says why the run holds the whole
    model in memory; None for one that goes layer by layer. Of `processes` that train it is what each holds: in `parts`
    sharing the model in the first way of `shardings`. RequestError where they cannot share a batch.
    """
    sizes, accelerated = Sizes(plan, skeleton), machine.accelerator is not None
    if why_not is None:
        return Estimate(tuple(_streamed(sizes, rates)), disk(sizes, True), machine, rates, why_not)
    configs = [step.config for step in plan.recipe.pipeline if isinstance(step.config, Train)]
    trainings = tuple(Training(sizes, config, processes, accelerated) for config in configs)
    parts = tuple(_in_memory(sizes, rates, trainings, shardings[0]))
    return Estimate(parts, disk(sizes, False), machine, rates, why_not, 0, trainings, tuple(shardings))


def _streamed(sizes: Sizes, rates: Rates | None) -> Iterator[Part]:
    config = next(step.config for step in sizes.plan.recipe.pipeline if isinstance(step.config, Quantize))
    table = round(largest(sizes.held) * sizes.width)
    yield Part("loading", memory.RUNTIME + table, _timed(work.loading, sizes, rates))
    name = " and ".join(step.name for step in sizes.plan.recipe.pipeline)
    seconds = _timed(partial(work.streaming, config=config), sizes, rates)
    yield Part(f"{name}, layer by layer", memory.streaming(sizes, config), seconds)


def _in_memory(sizes: Sizes, rates: Rates | None, trainings: Sequence[Training], sharding: Sharding) -> Iterator[Part]:
    yield Part("loading", memory.loading(sizes), _timed(work.loading, sizes, rates))
    steps, moved = iter(zip(trainings, sizes.plan.trained, strict=True)), False
    for step in sizes.plan.recipe.pipeline:
        if isinstance(step.config, Train):
            training, row = next(steps)
            moved = training.accelerated
            seconds = _timed(partial(work.training, config=step.config, numbers=row["trained"]), sizes, rates)
            yield Part("train", memory.RUNTIME + training.footprint(sharding).total, seconds, moved)
        elif isinstance(step.config, Quantize):
            seconds = _timed(partial(work.quantizing, config=step.config), sizes, rates)
            yield Part("quantize", memory.quantizing(sizes, step.config), seconds, moved)
        else:
            yield Part("upcycle", memory.upcycling(sizes), _timed(work.upcycling, sizes, rates))
    yield Part("saving", memory.saving(sizes), _timed(work.saving, sizes, rates))


def _timed(count: Callable[..., Seconds], sizes: Sizes, rates: Rates | None) -> Seconds | None:
    return None if rates is None else count(sizes, rates=rates)
