"""Values in plain words, for messages."""

from __future__ import annotations

import datetime
from typing import Any

LONGEST = 60
WORDS_READ_AS_BOOLEANS = "YAML reads yes, no, on and off as true and false; quote the word if it is meant as text"


def one_line(text: str) -> str:
    """`text` without line breaks and whatever else cannot be printed."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def clip(text: str) -> str:
    """`text` on one line, cut off where it gets long."""
    line = one_line(text[: 4 * LONGEST])
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def describe(value: Any) -> str:
    """What was found: `text "x"`, `the number 5`, `true`, `a list`, ..."""
    if value is None:
        return "nothing (an empty value is null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'text "{clip(value)}"'
    if isinstance(value, int | float):
        return f"the number {number(value)}"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a mapping"
    return f"a Python {type(value).__name__}"


def number(value: float) -> str:
    """A number as one would write it: 1.0 as 1."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)
    # str() refuses integers of thousands of digits.
    return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
