"""Configurations of real models, kept here so that `plan` can weigh them with neither network nor weights."""

from __future__ import annotations

import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, cast

from mote_quant.errors import RequestError
from mote_quant.recipe.near import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_VARIANT = re.compile(r"-(instruct|it|pt|base|chat)$")


def names() -> list[str]:
    """The models whose facts are known."""
    return sorted(_files())


def known(name: str) -> str | None:
    """The name that `name` is kept under, or None: letter case, a hub owner before it, and an ending that tells
    checkpoints of the same sizes apart (-Instruct, -it, -Base, ...) do not matter."""
    return {_plain(kept): kept for kept in names()}.get(_plain(name))


def load(name: str) -> PreTrainedConfig:
    """The configuration of the model `name` (see `known`); RequestError with near misses where there is none."""
    from transformers import AutoConfig

    found = known(name)
    if found is None:
        wanted = name.rpartition("/")[2]
        hint = did_you_mean(wanted, names(), limit=3)
        raise RequestError(
            f"no model folder and no facts are known as {name}{hint or '.'} Give a folder or a config.json; "
            f"known by name are {', '.join(names())}"
        )
    return cast("PreTrainedConfig", AutoConfig.for_model(**json.loads(_files()[found].read_text("utf-8"))))


def _plain(name: str) -> str:
    """A name without what does not matter."""
    return _VARIANT.sub("", name.rpartition("/")[2].casefold())


def _files() -> dict[str, Traversable]:
    folder = resources.files(__package__) / "facts"
    return {file.name.removesuffix(".json"): file for file in folder.iterdir() if file.name.endswith(".json")}
