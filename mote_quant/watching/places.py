"""Where a figure belongs: the decoder layer of a module."""

from __future__ import annotations

import re

_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")


def layer_of(path: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.experts.0`; the path itself where nothing in it is numbered."""
    found = _LAYER.match(path)
    return found[0] if found else path
