from __future__ import annotations

import io
import logging
import warnings

import pytest
from rich.console import Console
from transformers.utils import logging as theirs

from mote_quant.cli.progress import Hidden, Lines, Live, watching
from mote_quant.cli.session import Session


def _screen(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_file_gets_ten_lines_a_stretch() -> None:
    console = _screen(terminal=False)
    display = Lines(console)
    display.start("training", 1000)
    for step in range(1, 1001):
        display.advance(step, loss=1.5)
    lines = _written(console).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "training 1000/1000 loss 1.5"


def test_a_terminal_shows_bar_steps_and_loss_and_drops_what_had_no_end() -> None:
    console = _screen(terminal=True)
    display = Live(console)
    display.start("opening", 0)
    display.start("training", 8)
    display.advance(3, loss=2.25)
    display.close()
    last = _written(console).rpartition("\r")[2]  # the frame that stays
    assert "training" in last
    assert "3/8" in last
    assert "loss 2.25" in last
    assert "opening" not in last


def test_closing_twice_or_before_the_start_is_harmless() -> None:
    display = Live(_screen(terminal=True))
    display.advance(1)
    display.close()
    display.close()


def test_whatever_is_quietened_speaks_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mote_quant")
    before = (logger.level, list(logger.handlers), theirs.get_verbosity(), theirs.is_progress_bar_enabled())
    with watching(Session(), quiet=True) as display:
        assert isinstance(display, Hidden)
        warnings.warn("unheard", FutureWarning, stacklevel=1)  # an error outside
        logger.warning("unheard too")
        assert not theirs.is_progress_bar_enabled()
    after = (logger.level, list(logger.handlers), theirs.get_verbosity(), theirs.is_progress_bar_enabled())
    assert after == before
    assert capsys.readouterr().err == ""
