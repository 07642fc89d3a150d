"""Near misses: what somebody probably meant to write."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(word: str, options: Iterable[str], limit: int = 3) -> list[str]:
    """Up to `limit` of `options` that look like `word`, nearest first; letter case is ignored."""
    spelled = {option.casefold(): option for option in options}
    return [spelled[found] for found in get_close_matches(word.casefold(), spelled, n=limit, cutoff=0.6)]


def did_you_mean(word: str, options: Iterable[str], limit: int = 1) -> str:
    """A tail for a message, `; did you mean ...?`, or nothing when no option is near."""
    found = near(word, options, limit)
    return f"; did you mean {' or '.join(found)}?" if found else ""
