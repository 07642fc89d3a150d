"""Configurations of real models, kept here so that `plan` can weigh them with neither network nor weights."""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, cast

from mote_quant.errors import RequestError
from mote_quant.recipe.near import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def names() -> list[str]:
    """The models whose facts are known."""
    return sorted(_files())


def load(name: str) -> PreTrainedConfig:
    """The configuration of the model `name`; letter case and a hub owner before it do not matter.

    Raises RequestError with near misses for a model that is not known.
    """
    from transformers import AutoConfig

    spelled = {known.casefold(): known for known in names()}
    wanted = name.rpartition("/")[2]
    known = spelled.get(wanted.casefold())
    if known is None:
        hint = did_you_mean(wanted, names(), limit=3)
        raise RequestError(
            f"no model folder and no facts are known as {name}{hint or '.'} Give a folder or a config.json; "
            f"known by name are {', '.join(names())}"
        )
    return cast("PreTrainedConfig", AutoConfig.for_model(**json.loads(_files()[known].read_text("utf-8"))))


def _files() -> dict[str, Traversable]:
    folder = resources.files(__package__) / "facts"
    return {file.name.removesuffix(".json"): file for file in folder.iterdir() if file.name.endswith(".json")}
