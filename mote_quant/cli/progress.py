"""How far a run is, on stderr: a live display in a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from mote_quant.cli.session import Session

_LINES_A_STRETCH = 10


class Display(Protocol):
    """A `mote_quant.steps.Progress` that also ends."""

    def start(self, title: str, total: int) -> None:
        """A stretch of `total` units begins (0: nobody knows how many)."""

    def advance(self, done: int, **figures: float) -> None:
        """`done` units of the stretch are behind us."""

    def close(self) -> None:
        """Nothing more will come."""


class Hidden:
    """`--quiet`."""

    def start(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, done: int, **figures: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Live:
    """Spinner, bar, steps, figures, time left; a finished stretch stays as a line."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def start(self, title: str, total: int) -> None:
        """Begin a bar; without a total it pulses, and leaves no line behind."""
        self._end_stretch()
        self._bars.start()
        count = f"0/{total}" if total else ""
        self._task = self._bars.add_task(title, total=total or None, count=count, figures="")

    def advance(self, done: int, **figures: float) -> None:
        """Move the bar."""
        if self._task is not None:
            total = self._bars.tasks[-1].total
            count = f"{done}/{total:.0f}" if total else str(done)
            self._bars.update(self._task, completed=done, count=count, figures=_text(figures))

    def close(self) -> None:
        """Leave the display as it stands."""
        self._end_stretch()
        self._bars.stop()

    def _end_stretch(self) -> None:
        if self._task is not None and self._bars.tasks[-1].total is None:
            self._bars.remove_task(self._task)
        self._task = None


class Lines:
    """Ten plain lines a stretch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._total, self._shown = "", 0, 0

    def start(self, title: str, total: int) -> None:
        """Say what begins."""
        self._title, self._total, self._shown = title, total, 0
        self._say(f"{title}, {total} steps" if total else title)

    def advance(self, done: int, **figures: float) -> None:
        """Say so at every tenth."""
        tenth = _LINES_A_STRETCH * done // self._total if self._total else 0
        if tenth > self._shown:
            self._shown = tenth
            self._say(f"{self._title} {done}/{self._total} {_text(figures)}".rstrip())

    def close(self) -> None:
        """Nothing."""

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


@contextmanager
def watching(session: Session, quiet: bool = False) -> Iterator[Display]:
    """Inside, our logs and progress reach stderr as the user wants them; other libraries and warnings are silent."""
    console = Console(stderr=True)
    display: Display = Hidden() if quiet else Live(console) if console.is_terminal else Lines(console)
    level = logging.INFO if session.verbose else logging.ERROR if quiet else logging.WARNING
    with ExitStack() as stack:
        stack.enter_context(_logs(RichHandler(console=console, show_path=False, markup=False), level))
        stack.enter_context(_transformers_silent())
        stack.enter_context(_datasets_silent())
        stack.enter_context(warnings.catch_warnings())
        if not session.verbose:
            warnings.simplefilter("ignore")
        stack.callback(display.close)
        yield display


@contextmanager
def _logs(handler: logging.Handler, level: int) -> Iterator[None]:
    logger = logging.getLogger("mote_quant")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def _transformers_silent() -> Iterator[None]:
    from transformers.utils import logging as theirs

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()


@contextmanager
def _datasets_silent() -> Iterator[None]:
    import datasets
    from datasets.utils import logging as theirs

    verbosity, hidden = theirs.get_verbosity(), datasets.are_progress_bars_disabled()
    # What it logs as an error, with a traceback, it also raises.
    theirs.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if not hidden:
            datasets.enable_progress_bars()
