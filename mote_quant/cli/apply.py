"""`mote-quant apply`: carry out a recipe, show how far it is, and say what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mote_quant.cli.estimate import check_room, is_complete, prepare
from mote_quant.cli.options import (
    DataOption,
    JsonOption,
    LogToOption,
    ModelOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    ShardingOption,
    TimesOption,
)
from mote_quant.cli.output import print_json, print_lines, print_tables
from mote_quant.cli.planned import show_plan
from mote_quant.cli.progress import watching
from mote_quant.cli.session import Session, guarded
from mote_quant.ranks import launched, leave


@guarded
def apply(
    context: typer.Context,
    recipe: RecipeArgument,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the model goes; runs/<recipe> without.")
    ] = None,
    data: DataOption = None,
    overrides: SetOption = None,
    keep_steps: Annotated[bool, typer.Option("--keep-steps", help="Keep the checkpoint of every step.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan and the estimate.")] = False,
    sharding: ShardingOption = None,
    log_to: LogToOption = None,
    times: TimesOption = True,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out a recipe on a model: plan, estimate, run, save, report.

    The model lies at the top of DIR, ready for from_pretrained; all about the
    run lies in DIR/run. Interrupted? The same command goes on from there.

    \b
    Examples:
      mote-quant apply mote-digits --model runs/dense --output runs/mote
      mote-quant apply mote --model path/to/model --data train.jsonl
      mote-quant apply mine.yaml --model Qwen/Qwen3-4B --data owner/name:config
      mote-quant apply mote-qwen2.5-0.5b --dry-run
      torchrun --nproc_per_node 8 -m mote_quant apply mine.yaml --sharding fsdp2
    """
    session: Session = context.obj
    # Of several processes one speaks.
    quiet, as_json = quiet or not launched().main, as_json and launched().main
    with watching(session, quiet) as progress:
        from mote_quant import parallel, pipeline
        from mote_quant.cli.models import check_data, model_name, to_open
        from mote_quant.recipe import load
        from mote_quant.watching import check_sinks

        loaded = load(recipe, overrides or ())
        name, folder = model_name(loaded, model), output or Path("runs") / loaded.name
        sinks = tuple(name.strip() for name in (log_to or "").split(",") if name.strip())
        check_sinks(sinks, folder)
        shown = not (quiet or as_json) or (dry_run and as_json)
        asked: Any = None if sharding is None else sharding.value
        shared = parallel.chosen(asked)
        planned, estimate = prepare(loaded, name, folder, times and shown, shared)
        if shown:
            show_plan(planned, as_json, estimate)
        if dry_run:
            return
        check_room(estimate, folder, quiet)
        check_data(loaded, data)
        opened, processor = to_open(name, loaded, recipe, model is not None, quiet)
        session.output = folder
        complete = is_complete(folder)
        options = pipeline.Options(progress=progress, keep_steps=keep_steps, sharding=shared, log_to=sinks)
        pipeline.apply(loaded, opened, processor=processor, data=data, output=folder, options=options)
        leave()
    if complete and not quiet:
        typer.echo(f"{folder} is complete already; nothing to do", err=True)
    _report(session.output, quiet, as_json)


def _report(output: Path, quiet: bool, as_json: bool) -> None:
    """A report that somebody deleted or damaged since makes no failure of a run that is complete."""
    from mote_quant.report import tables

    if quiet and not as_json:
        return
    path = output / "run" / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        shown = list(tables(report))
    except (OSError, ValueError, KeyError, TypeError) as error:
        typer.echo(f"warning: the run is complete, but its report is not: {path} ({type(error).__name__})", err=True)
        return
    if as_json:
        print_json(report)
    else:
        print_tables(shown)
        print_lines([f"model   {output}", f"report  {output / 'run' / 'report.html'}"])
