"""One recipe on top of another: a file on its base, an override on a file."""

from __future__ import annotations

from mote_quant.recipe.located import Node
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.schema import FORMATS


def merge(own: Node, base: Node, path: Location = ()) -> Node:
    """`own` on top of `base`: mappings merge key by key, all else replaces. Every value keeps its place.

    Own keys come first, because in `bits` the first match wins.
    """
    if is_bits_entry(path) and isinstance(own.value, dict):
        base = _same_kind(own, long_form(base))
    if not isinstance(own.value, dict) or not isinstance(base.value, dict):
        return own
    merged = {
        key: merge(node, base.value[key], (*path, key)) if key in base.value else node
        for key, node in own.value.items()
    }
    return Node({**merged, **{key: node for key, node in base.value.items() if key not in merged}}, own.place)


def is_bits_entry(path: Location) -> bool:
    """Whether `path` leads to what `bits` says of one target."""
    return len(path) == 2 and path[0] == "bits"


def long_form(entry: Node) -> Node:
    """The mapping that a bare format name is short for."""
    return Node({"format": entry}, entry.place) if isinstance(entry.value, str) else entry


def _same_kind(own: Node, base: Node) -> Node:
    """`base`, or only an empty mapping where `own` turns to a kind of format that has other settings."""
    kinds = [_kind(own), _kind(base)]
    return base if None in kinds or kinds[0] is kinds[1] else Node({}, base.place)


def _kind(entry: Node) -> object:
    name = entry.child("format")
    return FORMATS.get(name.value) if name is not None and isinstance(name.value, str) else None
