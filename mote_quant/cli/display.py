"""Ways to show how far a run is: a live bar, plain lines, nothing. Each knows the time left and how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mote_quant.cli.output import human_time
from mote_quant.memory.units import human_bytes
from mote_quant.progress import Bytes

_LINES_A_STRETCH = 10
_QUIET_SECONDS = 300.0
"""In a long stretch a log file gets a line this often at least."""
_SETTLED_SECONDS = 2.0
"""Before that nothing is said about how fast it goes: the first units warm up."""

_TITLE = 48
"""Letters of a title that a live display shows."""

Clock = Callable[[], float]


class Display(Protocol):
    """A `mote_quant.progress.Progress` that also ends."""

    def start(self, title: str, total: int) -> None:
        """A stretch of `total` units begins (0: nobody knows how many)."""

    def advance(self, done: int, **figures: float) -> None:
        """`done` units of the stretch are behind us."""

    def close(self) -> None:
        """Nothing more will come."""


@dataclass
class Stretch:
    """How far one stretch is. A resumed one starts beyond 0: only what was done since counts as speed."""

    title: str
    total: int
    began: float
    first: int | None = None
    done: int = 0

    def advance(self, done: int) -> None:
        """`done` units are behind us."""
        if self.first is None:
            self.first = 0 if self.in_bytes else done - 1
        self.done = done

    @property
    def in_bytes(self) -> bool:
        """Whether units are bytes."""
        return isinstance(self.total, Bytes)

    def count(self) -> str:
        """`12/40`, `1.20 GiB/5.75 GiB`, or what is done alone."""
        shown = human_bytes if self.in_bytes else str
        return f"{shown(self.done)}/{shown(int(self.total))}" if self.total else shown(self.done)

    def speed(self, now: float) -> float | None:
        """Units a second, once that can be told."""
        taken, units = now - self.began, self.done - (self.first or 0)
        return units / taken if taken >= _SETTLED_SECONDS and units > 0 else None

    def pace(self, now: float) -> str:
        """`3.4/s`, `12 s each`, `350 MiB/s`; empty while it cannot be told."""
        speed = self.speed(now)
        if speed is None:
            return ""
        if self.in_bytes:
            return f"{human_bytes(round(speed))}/s"
        return f"{speed:.1f}/s" if speed >= 1 else f"{human_time(1 / speed)} each"

    def left(self, now: float) -> str:
        """`7 min left`; empty while it cannot be told, and at the end."""
        speed = self.speed(now)
        return f"{human_time((self.total - self.done) / speed)} left" if speed and self.total > self.done else ""


class Hidden:
    """`--quiet`."""

    def start(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, done: int, **figures: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Live:
    """Spinner, bar, units, figures, pace, time left; a finished stretch stays as a line."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        names = {"count": "", "figures": "cyan", "pace": "dim", "left": "green"}
        columns = [TextColumn(f"{{task.fields[{name}]}}", style=style or "none") for name, style in names.items()]
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            *columns[:2],
            TimeElapsedColumn(),
            *columns[2:],
            console=console,
        )
        self._clock = clock
        self._task: TaskID | None = None
        self._stretch = Stretch("", 0, 0.0)

    def start(self, title: str, total: int) -> None:
        """Begin a bar; without a total it pulses, and leaves no line behind."""
        self._end_stretch()
        self._bars.start()
        self._stretch = Stretch(title, total, self._clock())
        count = self._stretch.count() if total else ""
        self._task = self._bars.add_task(_short(title), total=total or None, count=count, figures="", pace="", left="")

    def advance(self, done: int, **figures: float) -> None:
        """Move the bar."""
        if self._task is not None:
            stretch, now = self._stretch, self._clock()
            stretch.advance(done)
            count, pace, left = stretch.count(), stretch.pace(now), stretch.left(now)
            self._bars.update(self._task, completed=done, count=count, figures=_text(figures), pace=pace, left=left)

    def close(self) -> None:
        """Leave the display as it stands."""
        self._end_stretch()
        self._bars.stop()

    def _end_stretch(self) -> None:
        if self._task is not None and self._bars.tasks[-1].total is None:
            self._bars.remove_task(self._task)
        elif self._task is not None:
            self._bars.update(self._task, left="")
            self._bars.stop_task(self._task)
        self._task = None


class Lines:
    """Plain lines: what begins, every tenth of it, and more often where a tenth takes long."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._stretch, self._shown, self._said = Stretch("", 0, 0.0), 0, 0.0

    def start(self, title: str, total: int) -> None:
        """Say what begins."""
        self._stretch, self._shown = Stretch(title, total, self._clock()), 0
        units = human_bytes(total) if isinstance(total, Bytes) else f"{total} steps"
        self._say(f"{title}, {units}" if total else title)

    def advance(self, done: int, **figures: float) -> None:
        """Say so at every tenth, and after some minutes without a word."""
        stretch, now = self._stretch, self._clock()
        stretch.advance(done)
        tenth = _LINES_A_STRETCH * done // stretch.total if stretch.total else 0
        if tenth > self._shown or now - self._said >= _QUIET_SECONDS:
            self._shown = max(tenth, self._shown)
            timing = ", ".join(part for part in (stretch.pace(now), stretch.left(now)) if part)
            parts = [stretch.title, stretch.count(), _text(figures), f"({timing})" if timing else ""]
            self._say(" ".join(part for part in parts if part))

    def close(self) -> None:
        """Nothing."""

    def _say(self, line: str) -> None:
        self._said = self._clock()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _short(title: str) -> str:
    """A title that leaves room for the bar: the middle of a long path goes."""
    return title if len(title) <= _TITLE else f"{title[: _TITLE // 3]}...{title[-_TITLE // 2 :]}"


def _text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
