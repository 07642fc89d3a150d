"""Values that know where they were written, and problems that say so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.wording import clip, one_line


@dataclass(frozen=True)
class Place:
    """Where something was written: a file and its line, an override, or a mapping handed over in Python."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One mistake. Its text is one line: place, path in the recipe, what is wrong."""

    place: Place
    path: Location
    message: str

    def __str__(self) -> str:
        return one_line(": ".join(part for part in (str(self.place), written(self.path), self.message) if part))


class UnusableError(Exception):
    """Something out of which no tree of values can be made at all. Never leaves the loader."""

    def __init__(self, place: Place, message: str, path: Location = ()) -> None:
        self.problem = Problem(place, path, message)
        super().__init__(message)


@dataclass(frozen=True)
class Node:
    """A value with its place. `value` is a scalar, a dict of nodes by text keys, or a list of nodes.

    A `broken` node stands for a value that could not be read and has been reported already.
    """

    value: Any
    place: Place
    broken: bool = False

    def child(self, key: str | int) -> Node | None:
        """The node under a key or at an index; None when there is no such child."""
        children: Mapping[str | int, Node] = dict(self.children())
        return children.get(key)

    def children(self) -> Iterator[tuple[str | int, Node]]:
        """Keys or indices with their nodes; none for a scalar."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def nearest(self, path: Location) -> tuple[Location, Node]:
        """The deepest node on the way along `path` that exists, and the path to it."""
        node, depth = self, 0
        for key in path:
            below = node.child(key)
            if below is None:
                break
            node, depth = below, depth + 1
        return path[:depth], node


def written(path: Location) -> str:
    """A path as people write it: `pipeline[1].train.steps`, `bits."re:.*lm_head".format`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{quoted(key)}"
    return text.removeprefix(".")


def quoted(key: str) -> str:
    """`key` for use in a path: in quotes when it has characters with a meaning there."""
    return key if re.fullmatch(r"[\w*-]+", key) else f'"{clip(key)}"'
