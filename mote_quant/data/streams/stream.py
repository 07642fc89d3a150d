"""A stream: its rows, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mote_quant.data.readers import Reader
from mote_quant.data.reading import Reading
from mote_quant.data.source import Source
from mote_quant.data.streams.feeds import Rows


@dataclass(frozen=True)
class Stream:
    """`rows`, of which `reader()` makes samples, as `reading` says. `block`: the length all samples have, or 0."""

    rows: Rows
    reader: Callable[[], Reader]
    reading: Reading
    block: int = 0

    @property
    def name(self) -> str:
        """As the recipe has it."""
        return self.rows.name


@dataclass(frozen=True)
class Streamed(Source):
    """A source whose `train` is empty: its samples come from `stream`. `validation` are the rows held out."""

    stream: Stream
