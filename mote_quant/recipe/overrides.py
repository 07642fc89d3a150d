"""`--set bits.shared.format=int3`: single values set over a recipe from outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mote_quant.recipe.document import Locate, parse
from mote_quant.recipe.located import Node, Place, Problem, UnusableError, written
from mote_quant.recipe.merge import is_bits_entry, long_form, merge
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.wording import clip, describe

_KEY = re.compile(
    r"""\[(?P<index>[0-9]+)\]
      | (?P<dot>\.?) (?: "(?P<double>[^"]+)" | '(?P<single>[^']+)' | (?P<bare>[^."'=\[\]]+) )""",
    re.VERBOSE,
)


def override(recipe: Node, settings: Sequence[str]) -> tuple[Node, list[Problem]]:
    """`recipe` with each `path=value` set in turn, and what is wrong with them.

    A path has dots between keys, and numbers for list entries: `pipeline.1.train.steps` or `pipeline[1].train.steps`;
    a key with dots in it is quoted: `bits."re:.*lm_head".format`. The value is YAML, and replaces what was there.
    """
    problems: list[Problem] = []
    for setting in settings:
        place = Place(f"--set {clip(setting)}")
        try:
            keys, text = _split(setting, place)
            value, flaws = parse(text, _always(place))
            problems += [replace(flaw, path=(*keys, *flaw.path)) for flaw in flaws]
            _refuse_a_step(recipe, keys, place)
            recipe = _set(recipe, (), keys, value or Node(None, place))
        except UnusableError as error:
            problems.append(error.problem)
    return recipe, problems


def _split(setting: str, place: Place) -> tuple[list[str], str]:
    """`a.b."c.d"=value` -> its keys and the text of its value."""
    keys: list[str] = []
    at = 0
    while not setting.startswith("=", at):
        found = _KEY.match(setting, at)
        if found is None or (found["index"] is None and bool(found["dot"]) != bool(keys)):
            text = "expected path=value, as in bits.shared.format=int3; quote a key that has dots in it"
            raise UnusableError(place, text)
        keys.append(next(found[name] for name in ("index", "double", "single", "bare") if found[name] is not None))
        at = found.end()
    if not keys:
        raise UnusableError(place, "expected path=value; the path is missing")
    if keys[0] == "extends":
        raise UnusableError(place, "extends belongs in a file; it cannot be set from outside")
    return keys, setting[at + 1 :]


def _refuse_a_step(recipe: Node, keys: Sequence[str], place: Place) -> None:
    """`train.steps` for `pipeline.1.train.steps` is a likely slip: verbs stand in the pipeline, not at the top."""
    pipeline = recipe.child("pipeline")
    if pipeline is not None and recipe.child(keys[0]) is None and (places := _holders(pipeline, keys[0])):
        meant = " or ".join(".".join(["pipeline", str(index), *keys]) for index in places)
        raise UnusableError(place, f"unknown key; did you mean {meant}?", (keys[0],))


def _holders(items: Node, key: str) -> list[int]:
    """Which entries have `key`; none of what is no list."""
    entries = items.value if isinstance(items.value, list) else []
    return [index for index, entry in enumerate(entries) if entry.child(key) is not None]


def _set(node: Node, path: Location, keys: Sequence[str], value: Node) -> Node:
    if not keys or node.broken:
        return node if keys else value
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        index = _index(node, path, key, value.place)
        items: list[Node] = list(node.value)
        items[index] = _set(items[index], (*path, index), rest, value)
        return Node(items, node.place)
    if is_bits_entry(path):
        node = long_form(node)
    entries = {} if node.value is None else node.value
    if not isinstance(entries, dict):
        raise UnusableError(value.place, f"is {describe(node.value)} and has no {key}", path)
    below = _set(entries.get(key, Node(None, value.place)), (*path, key), rest, value)
    if is_bits_entry(path):
        return merge(Node({key: below}, value.place), Node(entries, node.place), path)
    # A new key comes first: in `bits` the first match wins, and what is set from outside goes before the file.
    return Node({**entries, key: below} if key in entries else {key: below, **entries}, node.place)


def _index(items: Node, path: Location, key: str, place: Place) -> int:
    entries: list[Node] = items.value
    if re.fullmatch("[0-9]{1,6}", key) and int(key) < len(entries):
        return int(key)
    holders = [f"{written(path)}.{index}.{key}" for index in _holders(items, key)]
    hint = f"; did you mean {' or '.join(holders)}?" if holders else ""
    span = f"entries 0 to {len(entries) - 1}" if entries else "no entries"
    raise UnusableError(place, f"is a list with {span}; it has no {key}{hint}", path)


def _always(place: Place) -> Locate:
    return lambda line: place
