"""`mote-quant evaluate`: how good a saved model is, on held-out data and on lm-eval tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mote_quant.cli import completion
from mote_quant.cli.options import JsonOption
from mote_quant.cli.output import Table, print_json, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded


@guarded
def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Measure on all of this file, folder or id@split, or on the test split of a name or datasets id.",
            autocompletion=completion.data,
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Run these tasks of lm-eval or of ours (stdlib_next_line, ...); comma between.")
    ] = None,
    task_folder: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A folder with lm-eval task files of your own; repeat.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many samples, of the data and of each task.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Enter the figures into DIR's model card, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a saved model on held-out data, on lm-eval tasks, or both.

    \b
    Examples:
      mote-quant evaluate runs/mote --data stdlib-text
      mote-quant evaluate runs/mote --data test.jsonl
      mote-quant evaluate runs/mote --tasks stdlib_next_line,stdlib_passages --limit 100 --json
    """
    with watching(context.obj):
        found = _measured(folder, data, _names(tasks), task_folder or [], limit, card)
    if as_json:
        print_json(found)
    else:
        print_tables(_tables(found))


def _names(tasks: str | None) -> list[str]:
    return [name for part in (tasks or "").split(",") if (name := part.strip())]


def _measured(
    folder: Path, data: str | None, tasks: list[str], folders: list[Path], limit: int | None, card: bool
) -> dict[str, Any]:
    """`data` (the name, metrics, router statistics) and `tasks`; None and {} where not asked for.

    With `card` the folder's model card has them, too.
    """
    from mote_quant.errors import ModelError, RequestError
    from mote_quant.evaluate import harness
    from mote_quant.hf.loading import load_model, load_processor

    if data is None and not tasks:
        raise RequestError("nothing to measure: name data with --data, tasks with --tasks, or both")
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; give one that `mote-quant apply` wrote, or of any saved model")
    if tasks:
        harness.check_tasks(tasks, folders)
    model, processor = load_model(folder), load_processor(str(folder))
    scores = None if data is None else _on_data(model, processor, data, limit)
    ran = harness.run_tasks(model, processor, tasks, folders=folders, limit=limit) if tasks else {}
    found = {"data": scores, "tasks": ran}
    if card:
        from mote_quant.hf.card import record_evaluation

        record_evaluation(model, folder, _for_card(found, limit))
    return found


def _for_card(found: dict[str, Any], limit: int | None) -> dict[str, float]:
    """Each metric with the name of what it was measured on."""
    scores, some = found["data"] or {}, f" (first {limit} samples)" if limit else ""
    on_data = {f"{key} on {scores['name']}{some}": v for key, v in scores.items() if isinstance(v, float)}
    return on_data | {f"{task}{some}": float(value) for task, value in found["tasks"].items()}


def _on_data(model: Any, processor: Any, name: str, limit: int | None) -> dict[str, Any]:
    from mote_quant.data import set_apart
    from mote_quant.data.opener import opener_for
    from mote_quant.data.source import whole
    from mote_quant.evaluate import evaluate as measure
    from mote_quant.evaluate.routing import routing

    source = opener_for(model, processor=processor)(name, None)
    source, split = (whole(source), "all") if set_apart(name) else (source, "test")
    figures = measure(model, source, limit=limit)
    return {"name": name, "split": split, **figures, "routing": routing(model, source, limit=limit)}


def _tables(found: dict[str, Any]) -> Iterator[Table]:
    if found["data"] is not None:
        figures = {key: value for key, value in found["data"].items() if isinstance(value, float)}
        held_out = "held-out " if found["data"]["split"] == "test" else ""
        yield f"On {held_out}{found['data']['name']}", ["metric", "value"], _rows(figures)
        yield "Routers, mean over the layers", ["figure", "value"], _rows(found["data"]["routing"])
    yield "Tasks", ["task and metric", "value"], _rows(found["tasks"])


def _rows(figures: dict[str, float]) -> list[list[str]]:
    return [[name, f"{value:.6g}"] for name, value in figures.items()]
