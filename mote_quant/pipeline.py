"""`apply`: carry out a recipe on a model, step by step, with a journal to resume from."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from mote_quant.data.feed import check_held_out
from mote_quant.data.opener import Opener, opener_for
from mote_quant.data.source import Source
from mote_quant.errors import FingerprintError, MoteError, RequestError, RunError
from mote_quant.fingerprint import differences, fingerprint_of, weights_hash
from mote_quant.hf.foreign.live import take_over
from mote_quant.hf.loading import called, check_finite, check_model, folder_of, load_model, load_processor
from mote_quant.hf.mapped import load_mapped
from mote_quant.hf.saving import save_model, stored_bytes
from mote_quant.hf.teacher import open_teacher
from mote_quant.journal import Run
from mote_quant.parallel import Sharding, chosen
from mote_quant.planning import Plan, plan_on, skeleton_for
from mote_quant.progress import NOTICE
from mote_quant.provenance import measured, provenance
from mote_quant.ranks import by_main, company, gathered, join, ranks
from mote_quant.recipe import Recipe, dump, load
from mote_quant.recipe.schema import Quantize, Step, Train, trains
from mote_quant.report import build_report, render_html, render_markdown
from mote_quant.steps import RUN, Context, Progress, Silent
from mote_quant.steps.quantize.backends import require
from mote_quant.steps.train import require_compiler, require_library, require_shards
from mote_quant.streaming import Stream, held_because, read_once
from mote_quant.watching import check_sinks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its result.

    `sharding`: how the processes of a launcher (torchrun, accelerate) share a training; None as accelerate was told,
    else DDP. `log_to`: where figures of a training go beside `output/run/metrics.jsonl` (`tensorboard`, `wandb`).
    """

    progress: Progress = field(default_factory=Silent)
    keep_steps: bool = False
    sharding: Sharding | None = None
    log_to: tuple[str, ...] = ()


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
    _refuse_company(loaded, options)
    if options.sharding == "fsdp2" and not ranks().several:
        _log.log(
            NOTICE, "fsdp2 has nothing to share: this is one process (WORLD_SIZE is 1); start several with torchrun"
        )
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


def _refuse_company(recipe: Recipe, options: Options) -> None:
    """RequestError where several processes have nothing to share, or cannot share it in the way they are to."""
    if not ranks().several:
        return
    for config in _trained(recipe) if options.sharding == "fsdp2" else ():
        require_shards(config.optimizer)
    if not _trained(recipe):
        raise RequestError(
            f"nothing in this recipe trains, and {ranks().world} processes would all do the same: start one, without "
            "torchrun or accelerate launch"
        )


def _trained(recipe: Recipe) -> list[Train]:
    return [step.config for step in recipe.pipeline if isinstance(step.config, Train)]


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
    plan = _planned(recipe, finished)
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
            _stamp(model, made, notes)
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
    plan = _planned(loaded, skeleton_for(model))
    if any(config.compile for config in _trained(loaded)):
        require_compiler()
    opener = opener_for(model, processor=processor, data=data, seed=loaded.seed)
    # Teachers are opened here, and again when it is their turn: a bad one is refused before anything is trained.
    fingerprint = fingerprint_of(loaded, model, opener, partial(open_teacher, student=model, processor=processor))
    _same_everywhere(fingerprint)
    for config in _trained(loaded):
        check_held_out(config, opener)
    made = provenance(loaded, fingerprint)
    run = None if output is None else by_main(lambda: Run.open(Path(output), fingerprint))
    with _told_whether_changed(model, fingerprint["model"]), company(), ExitStack() as stack:
        if run is None:
            _run_steps(model, plan, opener, options, None, made)
            return model
        by_main(lambda: stack.enter_context(run.alone()))
        if not by_main(run.finished):
            _run_in_folder(model, plan, opener, options, run, made, processor)
            return model
        # The last run may have been killed just before it cleared up.
        by_main(lambda: _clear_up(run, options))
        return _already_done(model, run)


def _planned(recipe: Recipe, skeleton: nn.Module) -> Plan:
    plan = plan_on(recipe, skeleton)
    for spec in plan.formats.values():
        # Now, not when training is over and quantizing begins.
        require(getattr(spec, "backend", "own"))
    for config in _trained(recipe):
        require_library(config.optimizer)
    rounded = any(step.name == "quantize" for step in recipe.pipeline)
    if rounded and plan.layouts and not plan.trained and any(trains(spec) for spec in plan.formats.values()):
        _log.warning("no step trains the routed experts: they are copies of the dense network, rounded; expect little")
    return plan


def _same_everywhere(fingerprint: Mapping[str, Any]) -> None:
    """FingerprintError where processes of one run were given different things."""
    for rank, other in enumerate(gathered(fingerprint)):
        if details := "; ".join(differences(fingerprint, other)):
            raise FingerprintError(f"process {rank} of this run works on something else than process 0: {details}")


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
    notes = _run_steps(model, plan, opener, options, run, made)
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


def _run_steps(
    model: nn.Module, plan: Plan, opener: Opener, options: Options, run: Run | None, made: dict[str, Any]
) -> list[dict[str, Any]]:
    steps = plan.recipe.pipeline
    names = [step.name for step in steps]
    notes: list[dict[str, Any]] = []
    first = 0 if run is None else by_main(lambda: run.finished_steps(names))
    if run is not None and first:
        notes = run.restore_state(first - 1, names[first - 1], model)
        by_main(lambda: run.log("resumed", step=first))
        _log.log(NOTICE, "going on after step %d of %d", first, len(steps))
    for index in range(first, len(steps)):
        folder = None if run is None else run.step_folder(index, names[index])
        context = Context(plan.recipe.seed, plan.layouts, plan.formats, opener, folder, options.progress)
        context.logs, context.log_to = None if run is None else run.folder, options.log_to
        context.sharding, context.packs_next = options.sharding or "ddp", _packs(steps[index + 1 :])
        if run is not None:
            context.record = partial(_record, run)
        _log.info("step %d of %d: %s", index + 1, len(steps), names[index])
        RUN[names[index]](model, steps[index].config, context)
        notes.append({"step": names[index], **context.notes})
        if run is not None:
            by_main(partial(_keep, run, index, names, model, notes, options))
    _stamp(model, made, notes)
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


def _stamp(model: nn.Module, made: dict[str, Any], notes: list[dict[str, Any]]) -> None:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        tokens = sum(int(note.get("tokens", 0)) for note in notes)
        config = cast(Any, quantizer).quantization_config
        # What was known before stays: the model that this one was made from.
        config.provenance = config.provenance | made | {"tokens_seen": tokens, "measured": measured(notes)}


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
