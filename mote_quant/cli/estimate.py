"""What a run will take, as tables, and the checks before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mote_quant.cli.output import Table, human_time
from mote_quant.ranks import launched

if TYPE_CHECKING:
    from torch import nn

    from mote_quant.estimate import Estimate, Footprint
    from mote_quant.parallel.sharings import Sharding
    from mote_quant.planning import Plan
    from mote_quant.recipe import Recipe

_ROUGHLY = "What it will take, roughly"
_EACH_DEVICE = "What each device holds while it trains"


def prepare(recipe: Recipe, model: str, output: Path, timed: bool, sharding: Sharding = "ddp") -> tuple[Plan, Estimate]:
    """Plan `recipe` for the model named `model`, and say what carrying it out by the processes there are will take."""
    from mote_quant import planning
    from mote_quant.cli.models import to_plan

    skeleton = planning.skeleton_for(to_plan(model))
    planning.check_lengths(recipe, skeleton)
    planned = planning.plan_on(recipe, skeleton)
    return planned, estimate_for(planned, skeleton, model, output, timed, launched().world, [sharding])


def estimate_for(
    planned: Plan,
    skeleton: nn.Module,
    model: str,
    output: Path,
    timed: bool,
    processes: int = 1,
    shardings: Sequence[Sharding] = ("ddp",),
) -> Estimate:
    """The estimate of carrying out `planned` on this machine; `skeleton` as planning left it.

    `processes` that train share the model in one of these ways: each is told, the first one counts.
    """
    from mote_quant.estimate import estimate, measure_rates, this_machine, written

    rates = measure_rates(Path(model), output) if timed else None
    why_not = _held_because(planned, model)
    found = estimate(planned, skeleton, this_machine(output), rates, why_not, processes, shardings)
    return replace(found, there=found.disk.running if is_complete(output) else written(output))


def is_complete(output: Path) -> bool:
    """Whether a run in `output` says that it is done."""
    return (output / "run" / "done.json").is_file()


def _held_because(planned: Plan, model: str) -> str | None:
    """Why all of the model will be in memory; None where it goes through it layer by layer."""
    from mote_quant.data.embedded import EMBEDDED
    from mote_quant.streaming import held_because, streamable

    folder = Path(model)
    if model in EMBEDDED and not folder.is_dir():
        return "an embedded model is built in memory"
    return held_because(planned.recipe, folder) if folder.is_dir() else streamable(planned.recipe)


def check_room(estimate: Estimate, output: Path, quiet: bool) -> None:
    """RequestError where the disk is too small; a warning on stderr where memory probably is."""
    from mote_quant.estimate import require_room

    require_room(estimate, output)
    for warning in () if quiet else estimate.warnings():
        typer.echo(f"warning: {warning}", err=True)


def estimate_tables(estimate: Estimate) -> Iterator[Table]:
    """Part by part, and altogether against what this machine has."""
    from mote_quant.memory.units import human_bytes

    rows = [[part.name, human_bytes(part.memory), _range(part.seconds)] for part in estimate.parts]
    rows.append(["altogether", human_bytes(estimate.peak), _range(estimate.seconds)])
    header = ["part", "memory at most", "time"]
    yield _ROUGHLY, header if estimate.seconds else header[:2], rows if estimate.seconds else [row[:2] for row in rows]
    yield from _training_tables(estimate)
    machine, disk = estimate.machine, estimate.disk
    needs = [
        ("memory", estimate.peak, machine.free_memory),
        (f"memory of {machine.accelerator}", estimate.accelerator_peak, machine.accelerator_free),
        ("disk, finished model", disk.output, machine.free_disk),
        ("disk, while it runs", disk.running, machine.free_disk),
        ("disk, temporary files", disk.temporary, None),
        ("disk, distill.cache, at most", disk.lessons, None),
    ]
    free = [[what, human_bytes(size), "" if has is None else human_bytes(has)] for what, size, has in needs if size]
    yield "On this machine", ["what", "needed", "free"], free


def _training_tables(estimate: Estimate) -> Iterator[Table]:
    """For every train step what a device holds, by kind; a column for each way to share the model."""
    from mote_quant.memory.units import human_bytes

    for training in estimate.trainings:
        held = [training.footprint(sharding) for sharding in estimate.shardings]
        several = training.processes > 1
        header = [f"{training.processes} processes, {way}" if several else "memory" for way in estimate.shardings]
        rows = [[kind, *map(human_bytes, sizes)] for kind, sizes in _by_kind(held) if any(sizes)]
        rows.append(["altogether", *(human_bytes(found.total) for found in held)])
        yield _EACH_DEVICE, ["kind", *header], rows


def _by_kind(held: Sequence[Footprint]) -> Iterator[tuple[str, list[int]]]:
    every = [found.to_dict() for found in held]
    yield from ((kind, [found[kind] for found in every]) for kind in every[0])


def manner(estimate: Estimate) -> str:
    """Whether the model goes through memory layer by layer, and if not, why."""
    if estimate.why_not is None:
        return "The model goes through memory layer by layer."
    return f"All of the model is held in memory: {estimate.why_not}."


def _range(seconds: tuple[float, float] | None) -> str:
    return "" if seconds is None else " to ".join(dict.fromkeys(map(human_time, seconds)))
