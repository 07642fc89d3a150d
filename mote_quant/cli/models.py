"""What a model's name on the command line stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mote_quant.cli.hub import ADVICE, check_asked_for, fetch
from mote_quant.data import check_there
from mote_quant.data.embedded import EMBEDDED, embedded
from mote_quant.errors import ModelError, RequestError, first_line
from mote_quant.memory import facts
from mote_quant.recipe import Recipe
from mote_quant.recipe.near import did_you_mean
from mote_quant.recipe.schema import Quantize, Train


def model_name(recipe: Recipe, given: str | None) -> str:
    """`--model`, or else the recipe's own `model:`; RequestError without either."""
    name = given or recipe.model
    if name is None:
        raise RequestError(f"recipe {recipe.name} names no model: give one with --model (a folder or a hub id)")
    return name


def to_plan(name: str) -> Any:
    """What `mote_quant.plan` takes for `name`: a folder, shipped facts, an embedded model, a config file, a hub id.

    Only for a hub id whose sizes are not known here is anything downloaded: its config. Raises ModelError.
    """
    if Path(name).is_dir() or name in EMBEDDED or facts.known(name):
        return name
    if Path(name).is_file() or on_hub(name):
        return _config(name)
    raise ModelError(_unknown(name))


def to_open(name: str, recipe: Recipe, source: str, asked: bool, quiet: bool) -> tuple[Any, Any]:
    """What `pipeline.apply` takes for `name`: an embedded model and its processor, or a folder (or hub id) and None.

    A hub model is fetched if it was `asked` for, or is on this machine, or `source` (which recipe it was) is the user's
    own file. Raises ModelError, RequestError.
    """
    if Path(name).is_dir():
        return name, None
    built_in = embedded(name)
    if built_in is not None:
        return built_in.model(recipe.seed), built_in.processor()
    if not on_hub(name):
        raise ModelError(f"{name} is known by its sizes alone: it can be planned for. Give a model folder or a hub id")
    if not asked:
        check_asked_for(name, source)
    fetch(name, quiet)
    return name, None


def on_hub(name: str) -> bool:
    """Whether `name` can only be a hub id (`owner/name`); ModelError where it looks like a path that is not there."""
    owner, slash, rest = name.partition("/")
    if not slash or Path(name).exists():
        return False
    if not owner or owner in (".", "..", "~") or "/" in rest or not rest or Path(owner).is_dir():
        folder = Path(name).parent
        beside = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        raise ModelError(f"there is no {name}{did_you_mean(Path(name).name, beside, limit=3)}")
    return True


def check_data(recipe: Recipe, given: str | None) -> None:
    """DataError for a file that the run will want and that is not there: before an hour is spent on the model."""
    configs = [step.config for step in recipe.pipeline]
    named = {name for config in configs if isinstance(config, Train) for name in config.sources}
    named |= {config.calibration.data for config in configs if isinstance(config, Quantize) and config.calibration}
    for name in sorted(named if given is None else {given} if named else ()):
        check_there(name)


def _unknown(name: str) -> str:
    folders = [path.name for path in Path().iterdir() if path.is_dir() and not path.name.startswith(".")]
    known = [*EMBEDDED, *facts.names()]
    hint = did_you_mean(name, [*known, *folders], limit=3)
    text = f"no model folder and no facts are known as {name}{hint or '.'}"
    return f"{text} Give a folder, a config.json or a hub id (owner/name)" + (
        "" if hint else f"; known by name are {', '.join(known)}"
    )


def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        first = first_line(error).rstrip(".")
        if Path(name).is_file():
            raise ModelError(f"{name} cannot be read as the config.json of a model: {first}") from error
        raise ModelError(f"{name}: no config could be had from the Hugging Face Hub: {first}. {ADVICE}") from error
