"""Walking through the rows of a stream from any place on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mote_quant.data.streams.feeds import Rows
from mote_quant.errors import DataError, MoteError, RunError, first_line


class Walk:
    """The rows of one epoch, from the beginning or from where another walk stood."""

    def __init__(self, rows: Rows, state: Mapping[str, Any] | None = None) -> None:
        self._rows = rows
        self._data = rows.open()
        self.row = 0
        """How many rows were read, blank lines included."""
        if state is not None:
            self._data.load_state_dict(state["data"])
            self.row = state["row"]
        self._iterator: Iterator[Mapping[str, Any]] = iter(self._data)

    def state(self) -> dict[str, Any]:
        """Where it stands, JSON-ready."""
        return {"data": self._data.state_dict(), "row": self.row}

    def next(self) -> Mapping[str, Any] | None:
        """The next row as it is stored, or None at the end. RunError where the reader gives up."""
        try:
            row = next(self._iterator, None)
        except MoteError:
            raise
        except UnicodeDecodeError as error:
            raise DataError(f"{self._rows.name} is not UTF-8 text after row {self.row}; convert it first") from error
        # The reader is foreign code, over files or a network.
        except Exception as error:
            reason = first_line(error)
            raise RunError(
                f"{self._rows.name} cannot be read on after row {self.row}: {reason}. The last checkpoint is kept: the "
                "same command goes on from there"
            ) from error
        self.row += row is not None
        return row
