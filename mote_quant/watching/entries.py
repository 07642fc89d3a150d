"""What is logged at a step of a training, and its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]
"""What was logged at a `step`, nested."""


def flat(entry: Entry, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(`a/b/c`, number) of every number within `entry`; lists count from 0."""
    for key, value in entry.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield f"{prefix}{key}", float(value)


def level(entry: Entry) -> dict[str, Any]:
    """What Trainer logged and `figures`, side by side."""
    return {key: value for key, value in entry.items() if key != "figures"} | dict(entry.get("figures", {}))
