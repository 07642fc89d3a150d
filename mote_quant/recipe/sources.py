"""From what a caller names (a path, a shipped name, a mapping) to one tree of values, `extends` followed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote_quant.recipe.catalogue import shipped
from mote_quant.recipe.document import parse
from mote_quant.recipe.located import Node, Place, Problem, UnusableError
from mote_quant.recipe.merge import merge
from mote_quant.recipe.near import did_you_mean
from mote_quant.recipe.plain import HERE, locate
from mote_quant.recipe.wording import clip, describe

LARGEST_FILE = 1_000_000
SEE_SHIPPED = "; shipped ones are listed by `mote-quant recipes list`"


@dataclass(frozen=True)
class Gathered:
    """A tree with the mistakes found on the way. `whole`: every base that it builds on could be read."""

    tree: Node
    problems: list[Problem]
    whole: bool = True


def gather(source: Any) -> Gathered:
    """Read `source` and all it extends. Raises UnusableError when there is nothing to read."""
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        return _read(_find(name, Path(), Place(clip(name) or '""')), ())
    tree, problems = locate(source)
    if not isinstance(tree.value, dict):
        raise UnusableError(HERE, f"a recipe is a path, a shipped name, a mapping or a Recipe, not {describe(source)}")
    return _extended(Gathered(tree, problems), Path(), ())


def _find(name: str, folder: Path, asker: Place) -> Path:
    """The file that `name` means to somebody in `folder`: a path, or the name of a shipped recipe."""
    path = folder / name
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    known = shipped()
    found = known.get(name.removesuffix(".yaml"))
    if found is not None:
        return found
    if name and os.path.isdir(path):
        raise UnusableError(asker, f"{clip(name)} is a folder; a recipe is a file")
    beside = [entry.name for entry in path.parent.glob("*.y*ml")] if os.path.isdir(path.parent) else []
    hint = did_you_mean(path.name, [*known, *beside], limit=3) or SEE_SHIPPED
    raise UnusableError(asker, f"there is no recipe {clip(name)}{hint}")


def _read(path: Path, chain: tuple[Path, ...]) -> Gathered:
    place = Place(_shown(path))
    tree, problems = parse(_text(path, place), lambda line: Place(place.source, line))
    if tree is None or (tree.value is None and not tree.broken):
        raise UnusableError(place, "is empty; a recipe has at least a name and a pipeline")
    if tree.broken:
        raise UnusableError(tree.place, problems[0].message)
    if not isinstance(tree.value, dict):
        raise UnusableError(tree.place, f"a recipe is a mapping with name and pipeline, not {describe(tree.value)}")
    return _extended(Gathered(tree, problems), path.parent, (*chain, path))


def _text(path: Path, place: Place) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UnusableError(place, f"cannot be read: {error.strerror or error}") from error
    if len(data) > LARGEST_FILE:
        raise UnusableError(place, f"is larger than {LARGEST_FILE} bytes; a recipe is a small text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnusableError(Place(place.source, line), "is not UTF-8 text; a recipe is a YAML file") from error


def _extended(own: Gathered, folder: Path, chain: tuple[Path, ...]) -> Gathered:
    """`own` on top of the recipe it extends, if it extends one. `chain`: the files that lead here."""
    entries: dict[str, Node] = dict(own.tree.value)
    extends = entries.pop("extends", None)
    own = replace(own, tree=Node(entries, own.tree.place))
    if extends is None or extends.broken:
        return replace(own, whole=extends is None)
    try:
        base = _base(extends, folder, chain)
    except UnusableError as error:
        # The base's own place if it has one, else where it is asked for.
        path = ("extends",) if error.problem.place == extends.place else ()
        return replace(own, problems=[*own.problems, replace(error.problem, path=path)], whole=False)
    return Gathered(merge(own.tree, base.tree), [*own.problems, *base.problems], base.whole)


def _base(extends: Node, folder: Path, chain: tuple[Path, ...]) -> Gathered:
    if not isinstance(extends.value, str):
        raise UnusableError(extends.place, f"expected the name of one recipe, not {describe(extends.value)}")
    path = _find(extends.value, folder, extends.place)
    if any(_same(path, earlier) for earlier in chain):
        round_trip = " -> ".join(_shown(each) for each in (*chain, path))
        raise UnusableError(extends.place, f"goes round in a circle: {round_trip}")
    return _read(path, chain)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _shown(path: Path) -> str:
    """A path as short as it can be said: from the working directory if it lies below."""
    absolute, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(here + os.sep) else os.path.normpath(path)
