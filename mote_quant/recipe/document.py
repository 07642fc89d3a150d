"""YAML text -> a tree of located values, with every mistake of the text on the way.

The meaning of the text is that of `yaml.safe_load`, except that what YAML 1.1 quietly turns into something else (a
repeated key, 010 for eight, 1:30 for ninety) is a mistake here, and so are tags, which a recipe has no use for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from mote_quant.recipe.located import Node, Place, Problem, UnusableError
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.wording import WORDS_READ_AS_BOOLEANS, clip, describe

DEEPEST = 40
LARGEST = 20_000
_TOO_DEEP = f"is nested more than {DEEPEST} levels deep"

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name: name for name in ("str", "int", "float", "bool", "null", "timestamp")}
_COLLECTIONS = {_TAG + "map", _TAG + "seq"}
_MERGE = _TAG + "merge"
_TRAPS = {
    r"[-+]?0[0-7_]+": "a number with a leading 0 is octal to YAML; leave the 0 out, or quote it",
    r"[-+]?[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?": "YAML reads digits with colons as a number to base 60; quote it",
}
_SCALAR_ERRORS = (ValueError, LookupError, AttributeError, ArithmeticError, yaml.YAMLError)

Locate = Callable[[int], Place]
"""Line number, from 1 -> place."""


def parse(text: str, locate: Locate) -> tuple[Node | None, list[Problem]]:
    """The tree that `text` spells, none for no content, and its mistakes. Raises UnusableError if it is not YAML."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnusableError(
            locate(line), f"the character #x{error.character:04x} cannot stand in a text file"
        ) from error
    try:
        top = loader.get_single_node()
        reader = _Reader(loader, locate)
        return (None if top is None else reader.read(top, ())), reader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UnusableError(locate((mark.line if mark else loader.line) + 1), _syntax(error)) from error
    except RecursionError as error:
        raise UnusableError(locate(loader.line + 1), _TOO_DEEP) from error
    except (ValueError, OverflowError) as error:
        raise UnusableError(locate(loader.line + 1), f"is not valid YAML: {clip(str(error))}") from error


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "cannot be read"
    if "another document" in problem:
        return "a second document starts here; a recipe is one document"
    if "'\\t'" in problem:
        return "is not valid YAML: a tab cannot indent; use spaces"
    return f"is not valid YAML: {clip(problem)}"


@dataclass
class _Reader:
    """Turns YAML nodes into located ones; an aliased node is read, and reported, once."""

    loader: yaml.SafeLoader
    locate: Locate
    problems: list[Problem] = field(default_factory=list)
    done: dict[yaml.Node, Node] = field(default_factory=dict)
    open: set[yaml.Node] = field(default_factory=set)
    extent: dict[int, tuple[int, int]] = field(default_factory=dict)

    def read(self, source: yaml.Node, path: Location) -> Node:
        if source in self.open:
            return self.broken(source, path, "contains itself through an alias")
        if source not in self.done:
            self.open.add(source)
            self.done[source] = self.measured(self.read_new(source, path))
            self.open.remove(source)
        return self.done[source]

    def read_new(self, source: yaml.Node, path: Location) -> Node:
        if isinstance(source, yaml.ScalarNode):
            return self.scalar(source, path)
        if source.tag not in _COLLECTIONS:
            return self.broken(source, path, f"the tag {clip(source.tag.replace(_TAG, '!!'))} has no place in a recipe")
        if isinstance(source, yaml.MappingNode):
            return Node(self.mapping(source, path), self.place(source))
        items = [self.read(item, (*path, index)) for index, item in enumerate(source.value)]
        return Node(items, self.place(source))

    def scalar(self, source: yaml.ScalarNode, path: Location) -> Node:
        if source.tag not in _SCALARS:
            return self.broken(source, path, f"the tag {clip(source.tag.replace(_TAG, '!!'))} has no place in a recipe")
        kind = _SCALARS[source.tag]
        if kind in ("int", "float"):
            for pattern, text in _TRAPS.items():
                if re.fullmatch(pattern, source.value):
                    return self.broken(source, path, f"{clip(source.value)}: {text}")
        try:
            return Node(self.loader.construct_object(source), self.place(source))
        except _SCALAR_ERRORS:
            return self.broken(source, path, f"{clip(source.value)} cannot be read as {kind}")

    def mapping(self, source: yaml.MappingNode, path: Location) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in source.value:
            if key_node.tag == _MERGE:
                merged = {**merged, **self.merged(value_node, path)}
                continue
            key = self.key(key_node, path)
            if key is None:
                continue
            node = self.read(value_node, (*path, key))
            place = self.place(key_node)
            if key in own:
                first = own[key].place.line
                text = "is given a second time" + (f"; the first is in line {first}" if first else "")
                self.problems.append(Problem(place, (*path, key), text))
            else:
                own[key] = Node(node.value, place, node.broken)
        return {**merged, **own}

    def merged(self, source: yaml.Node, path: Location) -> dict[str, Node]:
        """What `<<` brings in; of several mappings the earlier wins."""
        found: dict[str, Node] = {}
        for part in source.value if isinstance(source, yaml.SequenceNode) else [source]:
            node = self.read(part, path)
            if isinstance(node.value, dict):
                found = {**node.value, **found}
            elif not node.broken:
                self.problems.append(Problem(self.place(part), path, f"<< takes mappings, not {describe(node.value)}"))
        return found

    def key(self, source: yaml.Node, path: Location) -> str | None:
        node = self.read(source, path)
        if isinstance(node.value, str):
            return node.value
        if not node.broken:
            hint = f" ({WORDS_READ_AS_BOOLEANS})" if isinstance(node.value, bool) else "; quote it"
            text = f"a key must be text, not {describe(node.value)}{hint}"
            self.problems.append(Problem(self.place(source), path, text))
        return None

    def measured(self, node: Node) -> Node:
        """Aliases can make a small text expand without end; stop before it does."""
        below = [self.extent.get(id(child.value), (1, 1)) for _, child in node.children()]
        size, height = 1 + sum(size for size, _ in below), 1 + max((height for _, height in below), default=0)
        if size > LARGEST or height > DEEPEST:
            raise UnusableError(node.place, f"has more than {LARGEST} values" if size > LARGEST else _TOO_DEEP)
        if isinstance(node.value, dict | list):
            self.extent[id(node.value)] = size, height
        return node

    def place(self, source: yaml.Node) -> Place:
        return self.locate(source.start_mark.line + 1)

    def broken(self, source: yaml.Node, path: Location, text: str) -> Node:
        place = self.place(source)
        self.problems.append(Problem(place, path, text))
        return Node(None, place, broken=True)
