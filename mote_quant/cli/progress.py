"""What reaches stderr while a command works: our progress and logs as the user wants them, and nobody else's."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.logging import RichHandler

from mote_quant.cli.display import Display, Hidden, Lines, Live
from mote_quant.progress import NOTICE

if TYPE_CHECKING:
    from mote_quant.cli.session import Session


@contextmanager
def watching(session: Session, quiet: bool = False) -> Iterator[Display]:
    """Inside, our logs and progress reach stderr as the user wants them; other libraries and warnings are silent."""
    console = Console(stderr=True)
    display: Display = Hidden() if quiet else Live(console) if console.is_terminal else Lines(console)
    level = logging.INFO if session.verbose else logging.ERROR if quiet else NOTICE
    with ExitStack() as stack:
        stack.enter_context(_logs(RichHandler(console=console, show_path=False, markup=False), level))
        stack.enter_context(_transformers_silent())
        stack.enter_context(_datasets_silent())
        stack.enter_context(_hub_silent())
        stack.enter_context(warnings.catch_warnings())
        if not session.verbose:
            warnings.simplefilter("ignore")
        stack.callback(display.close)
        yield display


@contextmanager
def _logs(handler: logging.Handler, level: int) -> Iterator[None]:
    logger = logging.getLogger("mote_quant")
    before = logger.level
    logging.addLevelName(NOTICE, "NOTICE")
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


@contextmanager
def _hub_silent() -> Iterator[None]:
    from huggingface_hub.utils import logging as theirs

    verbosity = theirs.get_verbosity()
    # It announces every retry; what cannot be reached is raised in the end.
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
