"""Where to write names beside points so that none covers a point or another name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Place = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
_REACH = (1.0, 1.8, 2.8, 4.0, 5.5, 7.5)
_SIDES = ((0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8), (1, 0), (-1, 0), (0, 1.2), (0, -1.2))


def place_labels(
    anchors: Sequence[Place], sizes: Sequence[Place], frame: Box, gap: float, lines: Sequence[Box] = ()
) -> list[Box]:
    """A box of each of `sizes` near its anchor, all in one unit; `gap` is half a marker and the first distance tried.

    `lines` are covered only where nothing else is free. Greedy, in the order given: the nearest free place within
    `frame`, or the one that covers least where none is free.
    """
    taken: list[Box] = [(x - gap, y - gap, x + gap, y + gap) for x, y in anchors]
    placed: list[Box] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        candidates = _candidates(anchor, size, gap)
        best = min(candidates, key=lambda box: _cost(box, frame, taken, lines))
        placed.append(best)
        taken.append(best)
    return placed


def nearest(point: Place, box: Box) -> Place:
    """The point of `box` closest to `point`."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _candidates(anchor: Place, size: Place, gap: float) -> Iterator[Box]:
    """Boxes around the anchor, nearest first: `min` keeps the first of equals."""
    (x, y), (width, height) = anchor, size
    for reach in _REACH:
        for across, up in _SIDES:
            left = x + across * gap * reach - width * (0.5 - 0.5 * across)
            bottom = y + up * gap * reach - height * (0.5 - 0.5 * up)
            yield (left, bottom, left + width, bottom + height)


def _cost(box: Box, frame: Box, taken: Sequence[Box], lines: Sequence[Box]) -> float:
    """The area that is covered, beyond the frame or, least of all, on a line."""
    covered = sum(_overlap(box, other) for other in taken) + _outside(box, frame)
    return covered + 0.1 * sum(_overlap(box, line) for line in lines)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, frame: Box) -> float:
    """The area of `box` beyond `frame`."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
