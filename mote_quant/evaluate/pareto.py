"""Which points no other point beats: the memory-accuracy front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(points: Sequence[T], size: Callable[[T], float], score: Callable[[T], float]) -> list[T]:
    """The points for which no other is at most as large and at least as good (and better in one), smallest first.

    Points equal in both are kept together.
    """
    kept: list[T] = []
    for point in sorted(points, key=lambda p: (size(p), -score(p))):
        last = kept[-1] if kept else None
        if last is None or score(point) > score(last) or (size(point), score(point)) == (size(last), score(last)):
            kept.append(point)
    return kept
