"""What can be said of backends where no library is installed; tests/backends runs beside the libraries."""

from __future__ import annotations

import logging
import os
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from mote_quant.errors import MissingExtraError
from mote_quant.recipe.integers import BACKEND_METHODS
from mote_quant.steps.quantize.backends import BACKENDS, EXTRAS, require
from mote_quant.steps.quantize.backends.extras import load


def test_every_backend_of_the_recipe_is_there_with_every_method_it_has():
    named = {(backend, method) for backend, methods in BACKEND_METHODS.items() for method in methods}
    assert set(BACKENDS) == {pair for pair in named if pair[0] != "own"}
    assert set(EXTRAS) == set(BACKEND_METHODS) - {"own"}


@pytest.mark.parametrize("backend", EXTRAS)
def test_the_extra_that_the_message_names_brings_the_library(backend):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][EXTRAS[backend]]
    assert backend in {requirement.partition(">=")[0] for requirement in wanted}


@pytest.mark.parametrize("backend", EXTRAS)
def test_a_missing_library_names_its_extra(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingExtraError, match=rf"backend: {backend} needs .*'mote-quant\[{EXTRAS[backend]}\]'"):
        require(backend)
    require("own")


def test_a_library_that_needs_an_environment_of_its_own_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    with pytest.raises(MissingExtraError, match=r"transformers 5\.17.*docs/backends\.md"):
        require("llmcompressor")


def library(tmp_path, monkeypatch, text):
    """An installed gptqmodel that does nothing but `text` when it is imported."""
    (tmp_path / "gptqmodel.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gptqmodel", raising=False)


def test_a_library_that_does_not_import_says_why(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, "import numpy.of_another_age")
    with pytest.raises(MissingExtraError, match=r"gptqmodel is installed but does not import: .*of_another_age"):
        load("gptqmodel", "gptqmodel")


LOUD = """
import logging, os, sys, warnings
print("a banner")
print("a progress bar", file=sys.stderr)
os.environ["HF_HOME"], os.environ["A_LIBRARY_WAS_HERE"] = "elsewhere", "1"
os.environ.pop("OMP_NUM_THREADS", None)
logging.getLogger().setLevel(logging.DEBUG)
logging.getLogger().addHandler(logging.NullHandler())
warnings.simplefilter("ignore")
warnings.warn("this library is old", DeprecationWarning)
"""


def test_what_a_library_does_to_the_process_is_undone(tmp_path, monkeypatch, capsys, caplog):
    library(tmp_path, monkeypatch, LOUD)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    caplog.set_level(logging.DEBUG, "mote_quant")
    root = logging.getLogger()
    before = dict(os.environ), root.level, list(root.handlers), list(warnings.filters)
    load("gptqmodel", "gptqmodel")
    assert (dict(os.environ), root.level, list(root.handlers), list(warnings.filters)) == before
    assert capsys.readouterr() == ("", "")
    assert [record.message for record in caplog.records] == ["gptqmodel: a banner", "gptqmodel: a progress bar"]


def test_a_log_that_is_shown_on_stderr_does_not_go_round_in_circles(tmp_path, monkeypatch, caplog, capfd):
    class Shown(logging.Handler):
        def emit(self, record):
            sys.stderr.write(record.getMessage() + "\n")

    library(tmp_path, monkeypatch, LOUD)
    log = logging.getLogger("mote_quant.steps.quantize.backends.extras")
    monkeypatch.setattr(log, "handlers", [Shown()])
    caplog.set_level(logging.DEBUG, log.name)
    load("gptqmodel", "gptqmodel")
    assert "gptqmodel: a banner\n" in capfd.readouterr().err


def test_a_library_that_fails_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    library(tmp_path, monkeypatch, LOUD + "1 / 0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError):
        load("gptqmodel", "gptqmodel")
    assert dict(os.environ) == before
