"""What a model's name on the command line stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mote_quant.data.embedded import EMBEDDED, embedded
from mote_quant.errors import ModelError, RequestError
from mote_quant.hf.loading import load_model, load_processor
from mote_quant.memory import facts
from mote_quant.recipe import Recipe


def model_name(recipe: Recipe, given: str | None) -> str:
    """`--model`, or else the recipe's own `model:`; RequestError without either."""
    name = given or recipe.model
    if name is None:
        raise RequestError(f"recipe {recipe.name} names no model: give one with --model (a folder or a hub id)")
    return name


def to_plan(name: str) -> Any:
    """What `mote_quant.plan` takes for `name`: a folder, shipped facts, an embedded model, a config file, a hub id."""
    known = name in EMBEDDED or name.rpartition("/")[2].casefold() in {fact.casefold() for fact in facts.names()}
    if Path(name).is_dir() or known:
        return name
    if Path(name).is_file() or "/" in name:
        return _config(name)
    return name  # planning knows the near misses


def open_model(name: str, seed: int) -> tuple[nn.Module, Any]:
    """The model and its processor (None without one); an embedded model is built in place under `seed`."""
    built_in = None if Path(name).is_dir() else embedded(name)
    if built_in is not None:
        return built_in.model(seed), built_in.processor()
    return load_model(name), load_processor(name)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        kept = ", ".join([*EMBEDDED, *facts.names()])
        raise ModelError(
            f"{name} is no model folder, and no config could be had ({first}); known here: {kept}"
        ) from error
