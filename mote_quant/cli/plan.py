"""`mote-quant plan`: what a recipe will do, and what the result will weigh, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mote_quant.cli import completion
from mote_quant.cli.budget import Match, Wish, show_candidates
from mote_quant.cli.estimate import estimate_for
from mote_quant.cli.options import JsonOption, SetOption, SharedBy, TimesOption
from mote_quant.cli.planned import show_plan
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded
from mote_quant.errors import RequestError

if TYPE_CHECKING:
    from mote_quant.parallel.sharings import Sharding
    from mote_quant.recipe import Recipe


@guarded
def plan(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe file, or a shipped one; without it, --budget weighs a list.",
            autocompletion=completion.recipes,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A model folder, a config file, a name such as Qwen2.5-3B, or a hub id.",
            autocompletion=completion.models,
        ),
    ] = None,
    overrides: SetOption = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="SIZE", help="3.4GB, or 0.75x of the dense feed-forward blocks; repeat."),
    ] = None,
    match: Annotated[Match | None, typer.Option("--match", help="What budgets count; stored without.")] = None,
    candidates: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            metavar="SWEEP",
            help="Another list than the shipped one.",
            autocompletion=completion.sweeps,
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--context", metavar="N", min=1, help="Add the KV cache of N tokens, in bfloat16.")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Sequences in that cache; 1 without.")] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", "--devices", metavar="N", min=1, help="Tell what each of N devices holds in training."
        ),
    ] = 1,
    sharding: Annotated[
        SharedBy | None,
        typer.Option(
            "--sharding",
            help="Tell only of one way that N devices share a training: each all of the model, or its part of every "
            "weight; of both without.",
        ),
    ] = None,
    times: TimesOption = True,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe will do to a model, what the result will weigh, and what making it takes.

    Nothing is run, and no weights are loaded. Without a recipe: which models
    fit a budget; budgets are those of the feed-forward experts.
    Exit code 2 for a budget that no candidate fits.

    \b
    Examples:
      mote-quant plan mote --model Llama-3.2-1B
      mote-quant plan mote-text --model DIR --set bits.shared=int3
      mote-quant plan mote-qwen2.5-0.5b --json | jq .stored_bytes
      mote-quant plan mote-qwen2.5-3b --processes 8 --sharding fsdp2
      mote-quant plan --model Qwen2.5-3B --budget 3.5GB --context 8192
    """
    wish = Wish(tuple(budgets or ()), match, candidates, tokens, batch)
    wish.check(recipe, model)
    if recipe is None and (processes > 1 or sharding):
        raise RequestError("--processes and --sharding are for the training of a recipe; name one")
    with watching(context.obj):
        if recipe is not None:
            show = _planned(recipe, model, overrides or (), wish, times, processes, sharding)
        else:
            show = _weighed(str(model), overrides or (), wish)
    show(as_json)


def _planned(
    recipe: str,
    model: str | None,
    overrides: Sequence[str],
    wish: Wish,
    times: bool,
    processes: int,
    sharding: SharedBy | None,
) -> Callable[[bool], None]:
    """Plan a recipe; what comes back shows the plan."""
    from mote_quant import planning
    from mote_quant.cli.models import model_name, to_plan
    from mote_quant.recipe import load
    from mote_quant.sweeps.room import budgets_for, room_for, run_for

    loaded = load(recipe, overrides)
    ways = _ways(loaded, processes, sharding)
    name = model_name(loaded, model)
    skeleton = planning.skeleton_for(to_plan(name))
    budgets, run = budgets_for(wish.budgets, skeleton), run_for(skeleton, wish.context, wish.sequences)
    planning.check_lengths(loaded, skeleton)
    planned = planning.plan_on(loaded, skeleton)
    room = room_for(planned, budgets, wish.accounting, run) if budgets or run else None
    estimate = estimate_for(planned, skeleton, name, Path("runs") / loaded.name, times, processes, ways)
    return partial(show_plan, planned, estimate=estimate, room=room)


def _ways(recipe: Recipe, processes: int, sharding: SharedBy | None) -> list[Sharding]:
    """How processes may share the training: as asked, else both ways where they differ and both work. RequestError."""
    from mote_quant.recipe.schema import Train
    from mote_quant.steps.train import require_shards, works_on_shards

    optimizers = [step.config.optimizer for step in recipe.pipeline if isinstance(step.config, Train)]
    if not optimizers and (processes > 1 or sharding):
        raise RequestError("--processes and --sharding are for a training, and nothing in this recipe trains")
    if sharding is SharedBy.fsdp2:
        for optimizer in optimizers:
            require_shards(optimizer)
    if sharding is not None:
        return [sharding.value]
    return ["ddp", "fsdp2"] if processes > 1 and all(map(works_on_shards, optimizers)) else ["ddp"]


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
