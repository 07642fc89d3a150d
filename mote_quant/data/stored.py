"""Rows of `datasets` as they are stored: images stay bytes or paths. What it keeps as JSON is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_AT_ONCE = 64


@dataclass(frozen=True)
class StoredTable:
    """The rows of a table, none of which is held."""

    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = unfolded(self.table.with_format("arrow")[index].to_pylist()[0], self.table.features)
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in self.table.with_format("arrow").iter(_AT_ONCE):
            for row in rows.to_pylist():
                yield unfolded(row, self.table.features)


def unfolded(value: Any, feature: Any) -> Any:
    """`value`, stored as the feature of `datasets` says, with its JSON read: a column of text and lists is kept so."""
    # The class is younger than the oldest `datasets` that is supported.
    if type(feature).__name__ == "Json" and isinstance(value, str):
        return json.loads(value)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {key: unfolded(item, feature.get(key)) for key, item in value.items()}
    each = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if each is not None and isinstance(value, list):
        return [unfolded(item, each) for item in value]
    return value
