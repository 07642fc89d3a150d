"""The steps of a recipe one after the other, from the first on that is not finished."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, cast

from torch import nn

from mote_quant.data.opener import Opener
from mote_quant.journal import Run
from mote_quant.options import Options
from mote_quant.planning import Plan
from mote_quant.progress import NOTICE
from mote_quant.provenance import measured
from mote_quant.ranks import by_main
from mote_quant.recipe.schema import Quantize, Step
from mote_quant.steps import RUN, Context

_log = logging.getLogger(__name__)


def run_steps(
    model: nn.Module, plan: Plan, opener: Opener, options: Options, run: Run | None, made: dict[str, Any]
) -> list[dict[str, Any]]:
    """Carry out the steps on `model`; what each of them notes for the report."""
    steps = plan.recipe.pipeline
    names = [step.name for step in steps]
    notes: list[dict[str, Any]] = []
    first = 0 if run is None else by_main(lambda: run.finished_steps(names))
    if run is not None and first:
        notes = run.restore_state(first - 1, names[first - 1], model)
        by_main(lambda: run.log("resumed", step=first))
        _log.log(NOTICE, "going on after step %d of %d", first, len(steps))
    for index in range(first, len(steps)):
        context = Context(plan.recipe.seed, plan.layouts, plan.formats, opener, progress=options.progress)
        context.sharding, context.packs_next = options.sharding or "ddp", _packs(steps[index + 1 :])
        if run is not None:
            context.folder, context.record = run.step_folder(index, names[index]), partial(_record, run)
            context.logs, context.log_to = run.folder, options.log_to
        _log.info("step %d of %d: %s", index + 1, len(steps), names[index])
        RUN[names[index]](model, steps[index].config, context)
        notes.append({"step": names[index], **context.notes})
        if run is not None:
            by_main(partial(_keep, run, index, names, model, notes, options))
    stamp(model, made, notes)
    return notes


def _record(run: Run, event: str, **values: Any) -> None:
    by_main(lambda: run.log(event, **values))


def _packs(later: list[Step]) -> bool:
    """Whether latent weights become packed ones before anything else happens to them."""
    config = later[0].config if later else None
    return isinstance(config, Quantize) and not config.keep_latents


def _keep(
    run: Run, index: int, names: list[str], model: nn.Module, notes: list[dict[str, Any]], options: Options
) -> None:
    run.log("step", index=index + 1, name=names[index])
    # Up-cycling is quick and follows from the seed; the last step's result is the output itself.
    if names[index] != "upcycle" and index + 1 < len(names):
        run.save_state(index, names[index], model, notes)
        if not options.keep_steps:
            run.drop_steps(before=index)


def stamp(model: nn.Module, made: dict[str, Any], notes: list[dict[str, Any]]) -> None:
    """Have `model` know how it was made."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        tokens = sum(int(note.get("tokens", 0)) for note in notes)
        config = cast(Any, quantizer).quantization_config
        # What was known before stays: the model that this one was made from.
        config.provenance = config.provenance | made | {"tokens_seen": tokens, "measured": measured(notes)}
