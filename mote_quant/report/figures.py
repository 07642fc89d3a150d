"""Figures as text, and tables of whatever a step has noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mote_quant.memory.units import human_bytes

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""
NONE = ""
"""The cell of what was not measured."""


def figure(value: Any, name: str = "") -> str:
    """A noted value for people: bytes (where `name` ends so) with their unit, three digits of a float."""
    if value is None:
        return NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return human_bytes(value) if name.endswith("bytes") else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(figure(item) for item in value)
    return str(value)


def percent(share: float | None) -> str:
    """A share of one as a percentage."""
    return NONE if share is None else f"{100 * share:.2f} %"


def words(name: str) -> str:
    """A key as a heading."""
    return name.replace("_", " ")


def noted(title: str, note: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of a mapping: one of its plain values, then one for each value that is a table itself."""
    plain = {key: value for key, value in note.items() if not _rows(value)}
    if plain:
        yield title, ["", ""], [[words(key), figure(value, key)] for key, value in plain.items()]
    for key, value in note.items():
        rows = _rows(value)
        if rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            cells = [[figure(row.get(column), column) for column in columns] for row in rows]
            yield f"{title}: {words(key)}", [words(column) for column in columns], cells


def _rows(value: Any) -> list[dict[str, Any]]:
    """The rows of a list of mappings, or of a mapping by name; none for anything else."""
    if isinstance(value, Mapping):
        return [{"": name, **(row if isinstance(row, Mapping) else {"value": row})} for name, row in value.items()]
    return list(value) if isinstance(value, list) and all(isinstance(row, Mapping) for row in value) else []
