"""Plain Python values <-> what the loader works on: mappings handed over in Python, and recipes as mappings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mote_quant.recipe.document import DEEPEST
from mote_quant.recipe.located import Node, Place, Problem
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.schema import Closed, FloatBits
from mote_quant.recipe.wording import describe

HERE = Place("<recipe>")


def locate(value: Any, path: Location = ()) -> tuple[Node, list[Problem]]:
    """A Python value as a tree of nodes, and what in it no recipe can hold."""
    problems: list[Problem] = []
    return _locate(value, path, problems), problems


def settings(model: Closed, given_only: bool = False) -> dict[str, Any]:
    """A part of a recipe as the mapping that makes it again: with its defaults written out, or only what was given."""
    keys = [key for key in type(model).model_fields if key in model.model_fields_set or not given_only]
    values = {key: getattr(model, key) for key in keys if key not in model.idle()}
    return {key: _plain(value, given_only) for key, value in values.items() if value is not None}


def _plain(value: Any, given_only: bool) -> Any:
    if isinstance(value, FloatBits):
        return value.format
    if isinstance(value, Closed):
        return settings(value, given_only)
    if isinstance(value, dict):
        return {key: _plain(item, given_only) for key, item in value.items()}
    return [_plain(item, given_only) for item in value] if isinstance(value, list) else value


def _locate(value: Any, path: Location, problems: list[Problem]) -> Node:
    if len(path) > DEEPEST:
        problems.append(Problem(HERE, path[:3], f"is nested more than {DEEPEST} levels deep"))
        return Node(None, HERE, broken=True)
    if isinstance(value, Closed):
        # Not the defaults: an override may turn to where a default has no meaning, and nobody wrote it.
        value = _plain(value, given_only=True)
    if isinstance(value, Mapping):
        return Node(_entries(value, path, problems), HERE)
    if isinstance(value, list | tuple):
        return Node([_locate(item, (*path, index), problems) for index, item in enumerate(value)], HERE)
    return Node(_scalar(value), HERE)


def _entries(value: Mapping[Any, Any], path: Location, problems: list[Problem]) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    for key, item in value.items():
        if isinstance(key, str):
            entries[str.__str__(key)] = _locate(item, (*path, key), problems)
        else:
            problems.append(Problem(HERE, path, f"a key must be text, not {describe(key)}"))
    return entries


def _scalar(value: Any) -> Any:
    """Paths become text, and subclasses of the plain types (numpy's, enumerations) the plain types."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    for plain in (int, float):
        if isinstance(value, plain):
            return plain(value)
    return value
