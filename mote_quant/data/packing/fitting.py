"""Which samples share a row: first-fit decreasing (D. S. Johnson, Near-optimal bin packing algorithms, 1973)."""

from __future__ import annotations

from collections.abc import Sequence


def fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `room`; each of them must be. The same for the same lengths.

    The longest come first, each into the first row that has room for it. A tree over the rows' free room finds that one
    in logarithmic time.
    """
    rows: list[list[int]] = []
    free = _FreeRoom(len(lengths), room)
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        row = free.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return rows


class _FreeRoom:
    """The free room of `rows` rows: a tree whose leaves are the rows and whose nodes hold the most that is below."""

    def __init__(self, rows: int, room: int) -> None:
        self._leaves = 1 << max(0, rows - 1).bit_length()
        self._most = [room] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """The first row with that much room, which now has less."""
        node = 1
        while node < self._leaves:
            node = 2 * node if self._most[2 * node] >= length else 2 * node + 1
        row = node - self._leaves
        self._most[node] -= length
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
        return row
