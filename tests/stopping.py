"""Runs that are stopped from within, as an interruption stops them: the process lives on, and what it had in memory."""

from __future__ import annotations

from tests.killing import Bomb


class StopError(Exception):
    """What a test throws into a run."""


class Stop(Bomb):
    """Throws instead of killing, at unit `at` of the `nth` stretch called `title`."""

    def go_off(self) -> None:
        raise StopError
