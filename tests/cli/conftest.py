"""A pico model in a folder, a recipe for it, and the program in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mote_quant.cli import app
from mote_quant.data import opener
from tests import pico
from tests.sources import source_for

RECIPE = """\
name: tiny
seed: 3
bits:
  routed: ternary
  shared: {format: int4, group_size: 16}
  router: float32
pipeline:
  - upcycle: {experts: 2}
  - train: {what: [routed, router], data: pico, steps: 4, batch_size: 2, learning_rate: 1.0e-2, checkpoint_every: 2}
  - quantize
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pico") / "llama"
    pico.PICO["llama"]().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def pico_data(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every data source is random pico batches; returns the names that were asked for."""
    return _patch_data(monkeypatch)


def _patch_data(patch: pytest.MonkeyPatch) -> list[str]:
    source, opened = source_for(pico.PICO["llama"]()), list[str]()

    def open_source(name: str, **options: Any) -> Any:
        opened.append(name)
        return source

    patch.setattr(opener, "open_source", open_source)
    return opened


def _mote(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def mote() -> Callable[..., Any]:
    """`mote("plan", ...)` -> exit_code, stdout, stderr."""
    return _mote


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[Any, Path]:
    """What `mote-quant -v apply` said, and its folder; look, but do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        _patch_data(patch)
        return _mote("-v", "apply", folder / "tiny.yaml", "-m", model, "-o", folder / "out"), folder / "out"
