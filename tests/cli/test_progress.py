from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import datasets
import pytest
from rich.console import Console
from transformers.utils import logging as theirs

from mote_quant.cli.progress import Hidden, Lines, Live, watching
from mote_quant.cli.session import Session
from mote_quant.data.local import read_rows
from mote_quant.errors import DataError


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


def _settings(logger: logging.Logger) -> tuple[object, ...]:
    of_transformers = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    of_datasets = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    return logger.level, list(logger.handlers), *of_transformers, *of_datasets


def test_whatever_is_quietened_speaks_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mote_quant")
    before = _settings(logger)
    with watching(Session(), quiet=True) as display:
        assert isinstance(display, Hidden)
        warnings.warn("unheard", FutureWarning, stacklevel=1)  # an error outside
        logger.warning("unheard too")
        assert not theirs.is_progress_bar_enabled()
    assert _settings(logger) == before
    assert capsys.readouterr().err == ""


def test_reading_data_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows, junk = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    rows.write_text('{"text": "some text"}')
    junk.write_bytes(b"not parquet")
    with watching(Session(), quiet=True):
        assert len(list(read_rows(rows))) == 1
        with pytest.raises(DataError, match="cannot be read"):
            read_rows(junk)
    assert capfd.readouterr() == ("", "")
