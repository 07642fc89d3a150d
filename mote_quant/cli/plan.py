"""`mote-quant plan`: what a recipe will do, and what the result will weigh, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote_quant.cli.options import JsonOption, RecipeArgument, SetOption
from mote_quant.cli.output import Table, print_json, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded

if TYPE_CHECKING:
    from mote_quant.memory.ledger import Ledger
    from mote_quant.planning import Plan


@guarded
def plan(
    context: typer.Context,
    recipe: RecipeArgument,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model folder, a config file, Qwen2.5-3B and the like, or a hub id."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe will do to a model, and what the result will weigh.

    Nothing is run, and no weights are loaded.

    \b
    Examples:
      mote-quant plan mote-qwen2.5-3b
      mote-quant plan mote-text --model DIR --set bits.shared=int3
      mote-quant plan mote-qwen2.5-0.5b --json | jq .stored_bytes
    """
    with watching(context.obj):
        from mote_quant import planning
        from mote_quant.cli.models import model_name, to_plan
        from mote_quant.recipe import load

        loaded = load(recipe, overrides or ())
        planned = planning.plan(loaded, to_plan(model_name(loaded, model)))
    show_plan(planned, as_json)


def show_plan(planned: Plan, as_json: bool) -> None:
    """Print a plan, as tables or as JSON."""
    if as_json:
        print_json(planned.to_dict())
    else:
        print_tables(plan_tables(planned))


def plan_tables(planned: Plan) -> Iterator[Table]:
    """Mixture layers, training, rules, roles, totals; everything beside the dense model."""
    yield "Mixture layers", ["layers", "first", "last", "experts", "top-k", "shared", "combine"], _mixtures(planned)
    yield "What trains", ["step", "trained", "frozen"], _trained(planned)
    yield "What each rule covers", ["target", "format", "tensors", "weights", "before", "after"], _covered(planned)
    header = ["role", "parameters", "bits each", "stored", "resident", "dense: parameters", "dense: stored"]
    yield "What it will weigh", header, _roles(planned.dense, planned.result)
    yield "Altogether", ["accounting", "dense", "result", "of dense"], _totals(planned.dense, planned.result)


def _mixtures(planned: Plan) -> list[list[str]]:
    """One row for each run of layers that are built alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for layout in planned.layouts:
        shared = "dense FFN" if layout.shared else "none"
        alike.setdefault((str(layout.experts), str(layout.top_k), shared, layout.combine), []).append(layout.path)
    return [[str(len(paths)), paths[0], paths[-1], *built] for built, paths in alike.items()]


def _trained(planned: Plan) -> list[list[str]]:
    return [
        [str(index), _counts(row["trained"]), _counts(row["frozen"])] for index, row in enumerate(planned.trained, 1)
    ]


def _counts(parameters: dict[str, int]) -> str:
    return ", ".join(f"{role} {count:,}" for role, count in parameters.items())


def _covered(planned: Plan) -> list[list[str]]:
    from mote_quant.memory.units import human_bytes

    return [
        [
            row.target,
            row.format or "(untouched)",
            f"{row.tensors:,}",
            f"{row.weights:,}",
            human_bytes(row.bytes_before),
            human_bytes(row.bytes_after),
        ]
        for row in planned.coverage
    ]


def _roles(dense: Ledger, result: Ledger) -> list[list[str]]:
    from mote_quant.memory.units import human_bytes

    rows = []
    for role in dict.fromkeys([*result.roles, *dense.roles]):
        now, before = result.roles.get(role), dense.roles.get(role)
        sizes = ["", "", "", ""]
        if now is not None:
            sizes = [
                f"{now.parameters:,}",
                f"{now.bits:.2f}",
                human_bytes(now.stored_bytes),
                human_bytes(now.resident_bytes),
            ]
        was = ["", ""] if before is None else [f"{before.parameters:,}", human_bytes(before.stored_bytes)]
        rows.append([role, *sizes, *was])
    return rows


def _totals(dense: Ledger, result: Ledger) -> list[list[str]]:
    """The three accountings of design 4."""
    from mote_quant.memory.units import human_bytes

    gib = 2**30
    sizes: dict[str, tuple[Any, Any]] = {
        "experts, as papers count": (round(gib * dense.paper_gib["experts"]), round(gib * result.paper_gib["experts"])),
        "stored (the file)": (dense.stored_bytes, result.stored_bytes),
        "resident (at run time)": (dense.resident_bytes, result.resident_bytes),
    }
    return [
        [name, human_bytes(before), human_bytes(after), f"{after / before:.0%}" if before else ""]
        for name, (before, after) in sizes.items()
    ]
