"""A schedule of rows that are made a window at a time: of a stream, a mix, packed or sorted samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from mote_quant.data.arranging import Arrangement, Row
from mote_quant.data.cursor import Cursor
from mote_quant.data.schedule import Schedule


@dataclass(frozen=True)
class Place:
    """Where a window begins: the row and the sample it begins with, and what was counted before it."""

    row: int
    window: int
    cursor: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)


class Windows(Schedule):
    """`total` rows of what `cursor` gives, as `arrangement` has it. They are asked for in increasing order.

    Nothing outlives its window, so the place where a window begins says all there is to say. Such places are kept as
    far back as `ahead` rows: rows are read ahead of the step that a checkpoint is of, and which place is needed shows
    when the resumed run asks for its first row.
    """

    def __init__(self, cursor: Cursor, arrangement: Arrangement, total: int, ahead: int) -> None:
        self._cursor, self._arrangement = cursor, arrangement
        self._total, self._ahead = total, ahead
        self._origin = Place(0, 0, cursor.state())
        self._load([])

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> Row:
        if index < self._next.row - len(self._rows) or self._pending:
            self._return_to(index)
        while index >= self._next.row:
            self._advance()
        self._forget(index - self._ahead)
        return self._rows[index - self._next.row]

    def state_dict(self) -> dict[str, Any]:
        """The places where the last windows begin, JSON-ready."""
        return {"places": [asdict(place) for place in self._places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from one of those; nothing is read before a row is asked for."""
        self._load([Place(**place) for place in state["places"]])

    def counted(self) -> dict[str, Any]:
        """What the report says of the windows so far: samples by the number of their source, and the arrangement's."""
        told = self._arrangement.told(Counter(self._next.counts)) if self._next.counts else {}
        found = {"sources": self._next.sources, "bad_rows": self._cursor.bad}
        return told | {name: value for name, value in found.items() if value}

    def _load(self, places: list[Place]) -> None:
        self._places, self._rows = places, list[Row]()
        self._next = places[-1] if places else self._origin
        self._pending = True

    def _return_to(self, index: int) -> None:
        """To the last known place that is not behind the row `index`."""
        self._places = [place for place in self._places if place.row <= index]
        self._next = self._places.pop() if self._places else self._origin
        self._cursor.load(self._next.cursor)
        self._rows, self._pending = [], False

    def _advance(self) -> None:
        """On to the next window."""
        here = self._next
        self._places.append(here)
        samples = [self._cursor.take() for _ in range(self._arrangement.samples)]
        self._rows, counted = self._arrangement.rows(samples, here.window)
        used = self._rows[: max(0, self._total - here.row)]
        drawn = Counter(str(sample["source"]) for row in used for sample in row if "source" in sample)
        self._next = Place(
            here.row + len(self._rows),
            here.window + 1,
            self._cursor.state(),
            dict(Counter(here.counts) + counted),
            dict(Counter(here.sources) + drawn),
        )

    def _forget(self, row: int) -> None:
        """The places that nobody will return to, who goes on from `row`."""
        while len(self._places) > 1 and self._places[1].row <= row:
            self._places.pop(0)
