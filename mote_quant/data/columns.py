"""The columns of a row that are read, and what must be in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mote_quant.errors import DataError

PAIRS = (("prompt", "completion"), ("question", "answer"))
"""A question and its answer, by either name."""


def pair_in(columns: Iterable[str]) -> tuple[str, str] | None:
    """The names that question and answer have among `columns`; `text` comes before the second pair."""
    names = set(columns)
    pairs = PAIRS[:1] if "text" in names else PAIRS
    return next((pair for pair in pairs if names.issuperset(pair)), None)


def described(columns: Iterable[str]) -> str:
    """What a table has and what is needed, for an error."""
    pairs = ", or ".join(" and ".join(names) for names in PAIRS)
    return f"has the columns {', '.join(sorted(columns))}; needed are text, or {pairs}, or messages"


def string(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column of the row; DataError for anything else."""
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} is {value!r}, text is needed")
    return value
