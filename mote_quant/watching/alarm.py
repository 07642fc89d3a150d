"""The alarm for experts that hardly any token reaches any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHARE = 0.05
"""Of what each expert would get if all were equal: below that it is as good as dead."""
PATIENCE = 5
"""Logged stretches in a row."""


def dead_experts(loads: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, int]]:
    """(layer, expert) of each whose load was next to nothing in all of the last `PATIENCE` stretches.

    `loads` are the routings that were logged (layer -> `load` [E]), oldest first.
    """
    last = loads[-PATIENCE:]
    if len(last) < PATIENCE:
        return []
    return [
        (layer, expert)
        for layer, routing in last[-1].items()
        for expert in range(len(routing["load"]))
        if all(_starves(stretch.get(layer), expert) for stretch in last)
    ]


def _starves(routing: Mapping[str, Any] | None, expert: int) -> bool:
    return routing is not None and routing["load"][expert] < SHARE / len(routing["load"])
