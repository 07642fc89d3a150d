"""Where long work says how far it is."""

from __future__ import annotations

import logging
from typing import Protocol

NOTICE = (logging.INFO + logging.WARNING) // 2
"""The log level of what whoever watches a run should know, and that is nothing to worry about."""


class Bytes(int):
    """A number of bytes: a stretch whose total is one is shown as such."""


class Progress(Protocol):
    """Where a step says how far it is."""

    def start(self, title: str, total: int) -> None:
        """A stretch of `total` units begins; 0 where nobody knows how many, `Bytes` where they are bytes."""

    def advance(self, done: int, **figures: float) -> None:
        """`done` units of the stretch are behind us; `figures` are worth showing (loss, ...)."""


class Silent:
    """Progress for library calls: nobody is watching."""

    def start(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, done: int, **figures: float) -> None:
        """Nothing."""
