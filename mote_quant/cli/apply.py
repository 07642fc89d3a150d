"""`mote-quant apply`: carry out a recipe, show how far it is, and say what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mote_quant.cli.options import JsonOption, QuietOption, RecipeArgument, SetOption
from mote_quant.cli.output import print_json, print_lines, print_tables
from mote_quant.cli.plan import show_plan
from mote_quant.cli.progress import watching
from mote_quant.cli.session import Session, guarded


@guarded
def apply(
    context: typer.Context,
    recipe: RecipeArgument,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model folder or a hub id; the recipe's own `model:` without.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where the model goes; runs/<recipe> without.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A file or a data source in place of what the recipe names.")
    ] = None,
    overrides: SetOption = None,
    keep_steps: Annotated[bool, typer.Option("--keep-steps", help="Keep the checkpoint of every step.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan; write and load nothing.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Carry out a recipe on a model: plan, run, save, report.

    The model lies at the top of DIR, ready for from_pretrained; all about the
    run lies in DIR/run. Interrupted? The same command goes on from there.

    \b
    Examples:
      mote-quant apply mote-digits --model runs/dense --output runs/mote
      mote-quant apply recipe.yaml --data train.jsonl --set seed=1
      mote-quant apply mote-qwen2.5-0.5b --dry-run
    """
    session: Session = context.obj
    with watching(session, quiet) as progress:
        from mote_quant import pipeline, planning
        from mote_quant.cli.models import model_name, open_model, to_plan
        from mote_quant.recipe import load

        loaded = load(recipe, overrides or ())
        name = model_name(loaded, model)
        planned = planning.plan(loaded, to_plan(name))
        if not (quiet or as_json) or (dry_run and as_json):
            show_plan(planned, as_json)
        if dry_run:
            return
        session.output = output or Path("runs") / loaded.name
        progress.start(f"opening {name}", 0)
        opened, processor = open_model(name, loaded.seed)
        options = pipeline.Options(progress=progress, keep_steps=keep_steps)
        pipeline.apply(loaded, opened, processor=processor, data=data, output=session.output, options=options)
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
