"""Samples one after the other without end, from any place on: epoch after epoch, each shuffled under the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mote_quant.data.order import shuffled
from mote_quant.data.source import Sample


class Cursor(Protocol):
    """A place in an endless sequence of samples."""

    @property
    def bad(self) -> int:
        """How many malformed rows were left out so far."""
        ...

    def take(self) -> Sample:
        """The next sample. Raises DataError where there is none to be had."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, JSON-ready."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go there."""
        ...


class InMemory:
    """A cursor over `samples` that are all here."""

    bad = 0

    def __init__(self, samples: Sequence[Sample], *seed: Any) -> None:
        self._samples, self._seed = samples, seed
        self._taken = 0
        self._epoch, self._order = -1, list[int]()

    def take(self) -> Sample:
        """The next of this epoch, or the first of another."""
        epoch, place = divmod(self._taken, len(self._samples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(len(self._samples), *self._seed, epoch)
        self._taken += 1
        return self._samples[self._order[place]]

    def state(self) -> dict[str, Any]:
        """How many were taken."""
        return {"taken": self._taken}

    def load(self, state: dict[str, Any]) -> None:
        """Go on after so many."""
        self._taken = state["taken"]
