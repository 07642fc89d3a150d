"""`mote-quant plan`: what a recipe will do, and what the result will weigh, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote_quant.cli.budget import Match, Wish, room_tables, show_candidates
from mote_quant.cli.options import JsonOption, SetOption
from mote_quant.cli.output import Table, print_json, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded

if TYPE_CHECKING:
    from mote_quant.memory.ledger import Ledger
    from mote_quant.moe import MoteLayout
    from mote_quant.planning import Plan
    from mote_quant.sweeps.room import RecipeRoom


@guarded
def plan(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A recipe file, or a shipped one; without it, --budget weighs a list."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model folder, a config file, Qwen2.5-3B and the like, or a hub id."),
    ] = None,
    overrides: SetOption = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="SIZE", help="3.4GB, or 0.75x of the dense feed-forward blocks; repeat."),
    ] = None,
    match: Annotated[Match | None, typer.Option("--match", help="What budgets count; stored without.")] = None,
    candidates: Annotated[
        str | None, typer.Option("--candidates", metavar="SWEEP", help="Another list than the shipped one.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, help="Add the KV cache of N tokens, in bfloat16.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Sequences in that cache; 1 without.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe will do to a model, and what the result will weigh; or which models fit a budget.

    Nothing is run, and no weights are loaded. Budgets are those of the feed-forward experts.
    Exit code 2 for a budget that no candidate fits.

    \b
    Examples:
      mote-quant plan mote-qwen2.5-3b
      mote-quant plan mote-text --model DIR --set bits.shared=int3
      mote-quant plan mote-qwen2.5-0.5b --json | jq .stored_bytes
      mote-quant plan --model Qwen2.5-3B --budget 3.5GB --context 8192
    """
    wish = Wish(tuple(budgets or ()), match, candidates, tokens, batch)
    wish.check(recipe, model)
    with watching(context.obj):
        if recipe is not None:
            show = _planned(recipe, model, overrides or (), wish)
        else:
            show = _weighed(str(model), overrides or (), wish)
    show(as_json)


def _planned(recipe: str, model: str | None, overrides: Sequence[str], wish: Wish) -> Callable[[bool], None]:
    """Plan a recipe; what comes back shows the plan."""
    from mote_quant import planning
    from mote_quant.cli.models import model_name, to_plan
    from mote_quant.recipe import load

    loaded = load(recipe, overrides)
    source = to_plan(model_name(loaded, model))
    if not (wish.budgets or wish.context):
        return partial(show_plan, planning.plan(loaded, source))

    from mote_quant.sweeps.room import budgets_for, room_for, run_for

    skeleton = planning.skeleton_for(source)
    budgets, run = budgets_for(wish.budgets, skeleton), run_for(skeleton, wish.context, wish.sequences)
    planned = planning.plan_on(loaded, skeleton)
    room = room_for(planned, budgets, wish.accounting, run)
    return partial(show_plan, planned, room=room)


def _weighed(model: str, overrides: Sequence[str], wish: Wish) -> Callable[[bool], None]:
    """Weigh the candidates; what comes back shows their table."""
    from mote_quant.cli.models import to_plan
    from mote_quant.sweeps.candidates_table import SHIPPED, weigh_candidates

    table = weigh_candidates(
        to_plan(model),
        wish.budgets,
        match=wish.accounting,
        context=wish.context,
        batch=wish.sequences,
        source=wish.candidates or SHIPPED,
        overrides=overrides,
    )
    return partial(show_candidates, table)


def show_plan(planned: Plan, as_json: bool, room: RecipeRoom | None = None) -> None:
    """Print a plan, as tables or as JSON, and the room it leaves."""
    if as_json:
        print_json(planned.to_dict() | ({} if room is None else room.to_dict()))
        return
    print_tables(plan_tables(planned))
    if room is not None:
        print_tables(room_tables(room))


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
        alike.setdefault((_experts(layout), str(layout.top_k), shared, layout.combine), []).append(layout.path)
    return [[str(len(paths)), paths[0], paths[-1], *built] for built, paths in alike.items()]


def _experts(layout: MoteLayout) -> str:
    kind = f" of 1/{layout.split} width" if layout.split > 1 else ""
    return f"{layout.experts}{kind}" if layout.lora_rank is None else f"{layout.experts} of rank {layout.lora_rank}"


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
