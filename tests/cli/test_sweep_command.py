"""`mote-quant sweep`: what it shows, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mote_quant.sweeps.run
from mote_quant.errors import SweepError
from tests.sweeps import results

Mote = Callable[..., Any]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `sweep` is called with; it writes a synthetic document."""
    calls: list[Any] = []

    def sweep(source: str, output: Path, *, options: Any) -> dict[str, Any]:
        calls.append((source, output, options))
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(results.document()))
        if source == "broken":
            raise SweepError("1 of the sweep's cells have no result; all others are in out\ntrain x: bad luck")
        return {}

    monkeypatch.setattr(mote_quant.sweeps.run, "sweep", sweep)
    return calls


def test_options_arrive(given: list[Any], mote: Mote, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--set", "seeds=[4]", "--model", "dense", "--data", "x.txt", "--jobs", "3", "--ray", "auto"]
    result = mote("sweep", "digits", "--output", out, *more)
    assert result.exit_code == 0, result.stderr
    ((source, output, options),) = given
    assert (source, output, options.jobs, options.ray) == ("digits", out, 3, "auto")
    assert list(options.overrides) == ["seeds=[4]", "base.model=dense", "data=x.txt"]


def test_table_and_headlines_are_shown(given: list[Any], mote: Mote, tmp_path: Path) -> None:
    result = mote("sweep", "digits", "--output", tmp_path)
    assert "mote-int4" in result.stdout
    assert "MoTE" in result.stdout
    assert str(tmp_path / "index.html") in result.stdout
    assert mote("sweep", "digits", "--output", tmp_path, "--quiet").stdout == ""
    assert json.loads(mote("sweep", "digits", "--output", tmp_path, "--json").stdout)["points"]


def test_failures_come_after_the_table_with_exit_code_3(given: list[Any], mote: Mote, tmp_path: Path) -> None:
    result = mote("sweep", "broken", "--output", tmp_path)
    assert result.exit_code == 3
    assert "mote-int4" in result.stdout
    assert "error: train x: bad luck" in result.stderr
    assert "same command again" in result.stderr


def test_a_mistake_has_exit_code_2(mote: Mote, tmp_path: Path) -> None:
    result = mote("sweep", "digit", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "did you mean digits" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_trains_nothing(mote: Mote, tmp_path: Path) -> None:
    result = mote("sweep", "digits", "--dry-run", "--json", "--set", "budgets=[0.27x]", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["fits"] == {"dense-int4": ["0.27x"]}
    assert {row["contender"] for row in shown["misfits"]} >= {"moe-bf16", "mote-int4"}
    assert not (tmp_path / "out").exists()
