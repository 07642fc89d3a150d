from __future__ import annotations

import logging
import warnings
from pathlib import Path

import datasets
import huggingface_hub.utils.logging
import pytest
from transformers.utils import logging as theirs

from mote_quant.cli.display import Hidden
from mote_quant.cli.progress import watching
from mote_quant.cli.session import Session
from mote_quant.data.local import read_rows
from mote_quant.errors import DataError


def _settings(logger: logging.Logger) -> tuple[object, ...]:
    of_transformers = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    of_hub = huggingface_hub.utils.logging.get_verbosity()
    of_datasets = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    return logger.level, list(logger.handlers), *of_transformers, *of_datasets, of_hub


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
