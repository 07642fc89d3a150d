"""A place in a stream: rows are read and shuffled so many at a time, and tokenized when they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mote_quant.data.order import shuffled
from mote_quant.data.readers import no_block
from mote_quant.data.source import Sample, too_few
from mote_quant.data.streams.stream import Stream
from mote_quant.data.streams.walk import Walk
from mote_quant.errors import DataError

_log = logging.getLogger(__name__)


class StreamCursor:
    """A cursor over a stream. What it holds is one window of rows, which a resumed run reads and tokenizes again.

    Once it has seen that the stream has fewer than `wanted` samples, those of a step, it says so.
    """

    def __init__(self, stream: Stream, *seed: Any, wanted: int = 0) -> None:
        self._stream, self._seed, self._wanted = stream, seed, wanted
        self._samples, self._taken = list[Sample](), 0
        self.bad = 0
        """Rows that were left out."""
        self.load({"epoch": 0, "window": 0, "walk": None, "carry": None, "made": 0, "bad": 0, "taken": 0})

    def take(self) -> Sample:
        """The next sample; the stream begins again where it ends."""
        while self._taken >= len(self._samples):
            self._start, self._taken = self._here(), 0
            self._samples = self._read()
        self._taken += 1
        return self._samples[self._taken - 1]

    def state(self) -> dict[str, Any]:
        """Where the window begins, and how many of its samples were taken."""
        return {**self._start, "taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        """Go there; nothing before that window is read."""
        self._start, self._taken = state, state["taken"]
        self._epoch, self._window, self._made, self.bad = (state[k] for k in ("epoch", "window", "made", "bad"))
        self._reader = self._stream.reader()
        self._reader.load(state["carry"])
        self._walk: Walk | None = None if state["walk"] is None else Walk(self._stream.rows, state["walk"])
        self._samples = self._read() if self._taken else []

    def _here(self) -> dict[str, Any]:
        values = {"epoch": self._epoch, "window": self._window, "made": self._made, "bad": self.bad}
        walk = None if self._walk is None else self._walk.state()
        return {**values, "walk": walk, "carry": self._reader.state()}

    def _read(self) -> list[Sample]:
        """The samples of the next window; none at the end of an epoch."""
        if self._walk is None:
            self._walk = self._beginning()
        rows: list[tuple[int, Mapping[str, Any]]] = []
        while len(rows) < self._stream.reading.shuffle_buffer and (row := self._walk.next()) is not None:
            rows.append((self._walk.row, row))
        order = shuffled(len(rows), *self._seed, self._epoch, self._window)
        samples = [sample for place in order for sample in self._made_of(*rows[place])]
        self._window, self._made = self._window + 1, self._made + len(samples)
        if not rows:
            self._end_epoch()
        return samples

    def _beginning(self) -> Walk:
        """Behind the rows that are held out."""
        walk = Walk(self._stream.rows)
        held_out = self._stream.reading.validation_rows
        while walk.row < held_out and walk.next() is not None:
            pass
        return walk

    def _end_epoch(self) -> None:
        if not self._made:
            raise DataError(f"{self._stream.name} {self._nothing()}")
        if not self._epoch and self._made < self._wanted:
            _log.warning("%s", too_few(self._wanted, f"{self._stream.name} has {self._made}"))
        self._walk, self._window, self._epoch, self._made = None, 0, self._epoch + 1, 0

    def _nothing(self) -> str:
        if self._stream.reading.validation_rows:
            return self._stream.reading.all_held_out
        if self._stream.block:
            return no_block(self._stream.block)
        return "has no rows to train on"

    def _made_of(self, number: int, row: Mapping[str, Any]) -> list[Sample]:
        """The samples of a row; none of one that is malformed, if so many are allowed."""
        where = f"{self._stream.name}, row {number}"
        try:
            parsed = self._stream.rows.parse(row)
            return [] if parsed is None else self._reader.samples(parsed, where)
        except DataError as error:
            said = str(error) if str(error).startswith(where) else f"{where}: {error}"
            self.bad += 1
            if self.bad > self._stream.reading.bad_rows:
                raise DataError(
                    f"{said}. The last checkpoint is kept: to go on from there without such rows say bad_rows: "
                    f"{self.bad} (or more)"
                ) from error
            _log.warning("%s; it is left out", said)
            return []
