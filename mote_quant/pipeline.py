"""`apply`: carry out a recipe on a model, step by step, with a journal to resume from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mote_quant.data import open_source
from mote_quant.data.source import Source, within
from mote_quant.errors import DataError, RunError
from mote_quant.hf.integrity import describe, verify_file
from mote_quant.hf.loading import check_finite
from mote_quant.hf.saving import save_model, stored_bytes
from mote_quant.journal import Run
from mote_quant.planning import Plan, plan_on, skeleton_for
from mote_quant.provenance import provenance
from mote_quant.recipe import Recipe, dump, load
from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import Quantize, Train
from mote_quant.report import build_report, render_html, render_markdown
from mote_quant.steps import RUN, Context, Progress, Silent

_log = logging.getLogger(__name__)
Opener = Callable[[str, int | None], Source]


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its result."""

    progress: Progress = field(default_factory=Silent)
    keep_steps: bool = False


def apply(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    model: nn.Module,
    *,
    processor: Any = None,
    data: str | Source | None = None,
    output: str | Path | None = None,
    options: Options | None = None,
) -> nn.Module:
    """Carry out `recipe` on `model` in place and return it.

    `recipe` is a path, a shipped name, a mapping or a Recipe. `processor` is the model's tokenizer or processor, for
    text and image data. `data` (a name, a file or a Source) replaces what the recipe names. With `output` the finished
    model is written there and an interrupted run is continued from there. Raises MoteError subclasses.
    """
    loaded = load(recipe)
    options = options or Options()
    check_finite(model)
    plan = plan_on(loaded, skeleton_for(model))
    opener = _opener(loaded, processor, data, context_length(model))
    fingerprint = fingerprint_of(loaded, model, opener)
    if output is None:
        _run_steps(model, plan, opener, options, None, provenance(loaded, fingerprint))
        return model
    run = Run.open(Path(output), fingerprint)
    done = run.read_json("done.json")
    if done is not None:
        # The last run may have been killed just before it cleared up.
        _clear_up(run, options)
        return _already_done(model, run, done["files"])
    return _run_in_folder(model, plan, opener, options, run, provenance(loaded, fingerprint), processor)


def _opener(recipe: Recipe, processor: Any, data: str | Source | None, context: int | None) -> Opener:
    """Opens a data source once, under the recipe's seed; its batches are checked against the model's context."""
    opened: dict[tuple[str, int | None], Source] = {}

    def open_data(name: str, max_length: int | None) -> Source:
        if isinstance(data, Source):
            return within(data, context)
        if max_length is not None and context is not None and max_length > context:
            raise DataError(f"max_length: {max_length} is more than the {context} tokens this model can take")
        key = (data or name, max_length)
        if key not in opened:
            source = open_source(key[0], processor=processor, max_length=max_length, seed=recipe.seed)
            opened[key] = within(source, context)
        return opened[key]

    return open_data


def context_length(model: nn.Module) -> int | None:
    """The most tokens the model's positions allow, where its config says."""
    text = cast(Any, model).config.get_text_config()
    return getattr(text, "max_position_embeddings", None)


def fingerprint_of(recipe: Recipe, model: nn.Module, open_data: Opener) -> dict[str, Any]:
    """What makes a run this run: the resolved recipe, the model's weights, the data."""
    named = [step.config for step in recipe.pipeline]
    wanted = {(c.data, c.max_length) for c in named if isinstance(c, Train)}
    wanted |= {
        (c.calibration.data, c.calibration.max_length) for c in named if isinstance(c, Quantize) and c.calibration
    }
    sources = {f"{name}@{length}" if length else name: (name, length) for name, length in sorted(wanted, key=str)}
    # As a list, for the order of `bits` decides which rule wins.
    values = settings(recipe)
    values["bits"] = [{target: spec} for target, spec in values["bits"].items()]
    return {
        "recipe": values,
        "model": weights_hash(model),
        "data": {key: open_data(*source).fingerprint for key, source in sources.items()},
    }


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of everything in the state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _run_in_folder(
    model: nn.Module,
    plan: Plan,
    opener: Opener,
    options: Options,
    run: Run,
    made: dict[str, Any],
    processor: Any,
) -> nn.Module:
    run.write("recipe.yaml", dump(plan.recipe))
    run.write("plan.json", json.dumps(plan.to_dict(), indent=2))
    notes = _run_steps(model, plan, opener, options, run, made)
    save_model(model, run.output, processor)
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
    files = {path.name: describe(path) for path in sorted(run.output.glob("*.safetensors"))}
    run.write("done.json", json.dumps({"files": files}))
    run.log("done")
    _clear_up(run, options)
    return model


def _clear_up(run: Run, options: Options) -> None:
    if not options.keep_steps:
        run.drop_steps()


def _run_steps(
    model: nn.Module, plan: Plan, opener: Opener, options: Options, run: Run | None, made: dict[str, Any]
) -> list[dict[str, Any]]:
    steps = plan.recipe.pipeline
    names = [step.name for step in steps]
    notes: list[dict[str, Any]] = []
    first = run.finished_steps(names) if run is not None else 0
    if run is not None and first:
        notes = run.restore_state(first - 1, names[first - 1], model)
        run.log("resumed", step=first)
    for index in range(first, len(steps)):
        folder = None if run is None else run.step_folder(index, names[index])
        context = Context(plan.recipe.seed, plan.layouts, plan.formats, opener, folder, options.progress)
        _log.info("step %d of %d: %s", index + 1, len(steps), names[index])
        RUN[names[index]](model, steps[index].config, context)
        notes.append({"step": names[index], **context.notes})
        if run is not None:
            _keep(run, index, names, model, notes, options)
    _stamp(model, made, notes)
    return notes


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
        cast(Any, quantizer).quantization_config.provenance = made | {"tokens_seen": tokens}


def _already_done(model: nn.Module, run: Run, files: dict[str, Any]) -> nn.Module:
    """The run in this folder is complete: check it and hand its model over."""
    for name, expected in files.items():
        verify_file(run.output / name, expected)
    _log.info("%s holds this run, complete; nothing to do", run.output)
    finished = cast(Any, type(model)).from_pretrained(str(run.output), dtype="auto")
    model.__dict__.update(finished.__dict__)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        from mote_quant.hf.attach import attach

        attach(model, quantizer=cast(Any, quantizer))
    return model
