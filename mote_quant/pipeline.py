"""`apply`: carry out a recipe on a model, step by step, with a journal to resume from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from mote_quant.admission import check_company, planned, same_everywhere, say_what_is_idle, teacher_for, trained
from mote_quant.data.feed import check_held_out
from mote_quant.data.opener import Opener, opener_for
from mote_quant.data.source import Source
from mote_quant.errors import MoteError, RunError
from mote_quant.fingerprint import fingerprint_of, weights_hash
from mote_quant.hf.foreign.live import take_over
from mote_quant.hf.loading import called, check_finite, check_model, folder_of, load_model, load_processor
from mote_quant.hf.mapped import load_mapped
from mote_quant.hf.saving import save_model, stored_bytes
from mote_quant.journal import Run
from mote_quant.options import Options as Options
from mote_quant.parallel import chosen
from mote_quant.planning import Plan, skeleton_for
from mote_quant.progress import Silent
from mote_quant.provenance import provenance
from mote_quant.ranks import by_main, company, join
from mote_quant.recipe import Recipe, dump, load
from mote_quant.report import build_report, render_html, render_markdown
from mote_quant.stepping import run_steps, stamp
from mote_quant.steps.train import require_compiler
from mote_quant.streaming import Stream, held_because, read_once
from mote_quant.watching import check_sinks

_log = logging.getLogger(__name__)


def apply(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    model: nn.Module | str | Path,
    *,
    processor: Any = None,
    data: str | Source | None = None,
    output: str | Path | None = None,
    options: Options | None = None,
) -> nn.Module:
    """Carry out `recipe` on `model` and return it.

    `recipe` is a path, a shipped name, a mapping or a Recipe. `model` is changed in place; a model folder (or a hub id)
    is opened here, with the processor beside it, and where `output` is given and the recipe does not train it need
    not fit in memory (see `mote_quant.streaming`). `processor` is the model's tokenizer or processor, for text and
    image data. `data` (a name, a file or a Source) replaces what the recipe names. With `output` the finished model is
    written there and an interrupted run is continued from there. Raises MoteError subclasses; where `model` was changed
    before a step failed, the message says so, and it is of no further use.
    """
    loaded, options = load(recipe), options or Options()
    options = replace(options, sharding=chosen(options.sharding))
    check_sinks(options.log_to, None if output is None else Path(output))
    if not join().main:
        options = replace(options, progress=Silent())
    check_company(loaded, options.sharding)
    say_what_is_idle(loaded, options)
    if not isinstance(model, str | Path):
        return _apply_to_model(loaded, model, processor, data, output, options)
    folder = folder_of(model)
    processor = processor or load_processor(str(folder))
    reason = held_because(loaded, folder) if output else "there is no output folder to stream into"
    if reason is None:
        options.progress.start(f"opening {model}", 0)
        opened = called(load_mapped(folder, loaded.bits), model)
        return _apply_to_files(loaded, folder, opened, processor, data, Path(cast("str | Path", output)), options)
    _log.info("all of %s is held in memory: %s", model, reason)
    options.progress.start(f"loading {model}", 0)
    return _apply_to_model(loaded, called(load_model(folder), model), processor, data, output, options)


def _apply_to_files(
    recipe: Recipe,
    folder: Path,
    model: nn.Module,
    processor: Any,
    data: str | Source | None,
    output: Path,
    options: Options,
) -> nn.Module:
    finished = skeleton_for(folder)
    plan = planned(recipe, finished)
    check_model(model)
    opener = opener_for(model, processor=processor, data=data, seed=recipe.seed)
    fingerprint = fingerprint_of(recipe, model, opener, tensors=read_once(model, options.progress))
    made = provenance(recipe, fingerprint)
    run = Run.open(output, fingerprint)
    with run.alone():
        if not run.finished():
            stream = Stream(model, plan, finished, run.stages, opener, options.progress)
            _begin(run, plan)
            notes = stream.run()
            stamp(model, made, notes)
            options.progress.start("saving", 0)
            _conclude(run, plan, notes, made, stream.save(processor))
        _clear_up(run, options)
    return load_model(output)


def _apply_to_model(
    loaded: Recipe,
    model: nn.Module,
    processor: Any,
    data: str | Source | None,
    output: str | Path | None,
    options: Options,
) -> nn.Module:
    check_model(model)
    take_over(model)
    check_finite(model)
    plan = planned(loaded, skeleton_for(model))
    if any(config.compile for config in trained(loaded)):
        require_compiler()
    opener = opener_for(model, processor=processor, data=data, seed=loaded.seed)
    # Teachers are opened here, and again when it is their turn: a bad one is refused before anything is trained.
    fingerprint = fingerprint_of(loaded, model, opener, partial(teacher_for, loaded, model, processor))
    same_everywhere(fingerprint)
    for config in trained(loaded):
        check_held_out(config, opener)
    made = provenance(loaded, fingerprint)
    run = None if output is None else by_main(lambda: Run.open(Path(output), fingerprint))
    with _told_whether_changed(model, fingerprint["model"]), company(), ExitStack() as stack:
        if run is None:
            run_steps(model, plan, opener, options, None, made)
            return model
        by_main(lambda: stack.enter_context(run.alone()))
        if not by_main(run.finished):
            _run_in_folder(model, plan, opener, options, run, made, processor)
            return model
        # The last run may have been killed just before it cleared up.
        by_main(lambda: _clear_up(run, options))
        return _already_done(model, run)


@contextmanager
def _told_whether_changed(model: nn.Module, before: str) -> Iterator[None]:
    """An error out of here says so when `model` no longer has the weights of hash `before`."""
    try:
        yield
    except MoteError as error:
        gone = any(parameter.is_meta for parameter in model.parameters())
        if gone or weights_hash(model) != before:
            error.advice = "the model object was changed; load it again before retrying"
        raise


def _run_in_folder(
    model: nn.Module,
    plan: Plan,
    opener: Opener,
    options: Options,
    run: Run,
    made: dict[str, Any],
    processor: Any,
) -> None:
    by_main(lambda: _begin(run, plan))
    notes = run_steps(model, plan, opener, options, run, made)
    options.progress.start("saving", 0)
    by_main(lambda: _conclude(run, plan.settled(model), notes, made, save_model(model, run.output, processor)))
    by_main(lambda: _clear_up(run, options))


def _begin(run: Run, plan: Plan) -> None:
    run.write("recipe.yaml", dump(plan.recipe))
    run.write("plan.json", json.dumps(plan.to_dict(), indent=2))


def _conclude(run: Run, plan: Plan, notes: list[dict[str, Any]], made: dict[str, Any], written: list[str]) -> None:
    """Hold what was `written` against the plan, report, and say that the run is done."""
    sizes = {"predicted": plan.result.stored_bytes, "stored": stored_bytes(run.output)}
    if sizes["predicted"] != sizes["stored"]:
        raise RunError(
            f"{run.output} holds {sizes['stored']} bytes of tensors, {sizes['predicted']} were planned: "
            "a bug in mote-quant"
        )
    report = build_report(plan, notes, sizes, made)
    run.write("report.json", json.dumps(report, indent=2))
    run.write("report.md", render_markdown(report))
    run.write("report.html", render_html(report))
    run.finish(written)


def _clear_up(run: Run, options: Options) -> None:
    if not options.keep_steps:
        run.drop_steps()


def _already_done(model: nn.Module, run: Run) -> nn.Module:
    """The run in this folder is complete, its files are those written: hand its model over."""
    _log.info("%s holds this run, complete; nothing to do", run.output)
    finished = cast(Any, type(model)).from_pretrained(str(run.output), dtype="auto")
    model.__dict__.update(finished.__dict__)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        from mote_quant.hf.attach import attach

        attach(model, quantizer=cast(Any, quantizer))
    return model
