"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mote_quant.cli import completion

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or the name of a shipped one (`mote-quant recipes`).",
        autocompletion=completion.recipes,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model folder or a hub id (only a model named here is downloaded); the recipe's own `model:` without.",
        autocompletion=completion.models,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set one value over the recipe, as bits.shared.format=int3; repeat.",
        autocompletion=completion.settings,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="In place of what the recipe names: a file, a folder, an embedded source, or a `datasets` id (owner/name, "
        "owner/name:config or owner/name:config@split), which is downloaded.",
        autocompletion=completion.data,
    ),
]


class SharedBy(StrEnum):
    """The names of `mote_quant.parallel.Sharding`, without its imports."""

    ddp = "ddp"
    fsdp2 = "fsdp2"


ShardingOption = Annotated[
    SharedBy | None,
    typer.Option(
        "--sharding",
        help="How the processes of torchrun share a training: each all of the model, or its part of every weight. "
        "As accelerate launch was told, without.",
    ),
]
LogToOption = Annotated[
    str | None,
    typer.Option(
        "--log-to",
        metavar="NAMES",
        help="Where the figures of a training go beside DIR/run/metrics.jsonl: tensorboard, wandb, or both (comma).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
TimesOption = Annotated[
    bool,
    typer.Option("--times/--no-times", help="Time this machine for half a second, to say how long it will take."),
]
