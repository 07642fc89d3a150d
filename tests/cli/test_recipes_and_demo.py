from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mote_quant.sweeps.run
from mote_quant.recipe import load, shipped
from tests.sweeps import results

Mote = Callable[..., Any]


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "list")])
def test_list_names_every_shipped_recipe(arguments: tuple[str, ...], mote: Mote) -> None:
    result = mote(*arguments)
    assert result.exit_code == 0, result.stderr
    first = {line.split(" ")[0] for line in result.stdout.splitlines()}
    assert set(shipped()) <= first


def test_show_gives_a_recipe_that_loads_to_the_same(mote: Mote, tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(mote("recipes", "show", "moe-digits-int3").stdout)
    assert load(str(shown)) == load("moe-digits-int3")


def test_show_the_file_itself(mote: Mote) -> None:
    shown = mote("recipes", "show", "moe-digits-int3", "--source").stdout
    assert shown == shipped()["moe-digits-int3"].read_text()


def test_show_knows_near_misses(mote: Mote) -> None:
    result = mote("recipes", "show", "mote-digts")
    assert result.exit_code == 2
    assert "mote-digits" in result.stderr


def test_validate_says_every_problem_of_every_file(mote: Mote, recipe: str, tmp_path: Path) -> None:
    good = mote("recipes", "validate", recipe, "mote-digits")
    assert (good.exit_code, good.stderr) == (0, "")
    assert good.stdout.count(": ok") == 2
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    paths[0].write_text("name: one\nbits: {routed: int7, shared: int9}\npipeline: [quantize]\n")
    paths[1].write_text("name: two\n")
    bad = mote("recipes", "validate", *paths, recipe)
    assert bad.exit_code == 2
    assert bad.stdout == f"{recipe}: ok\n"
    problems = bad.stderr.splitlines()
    assert len([line for line in problems if "one.yaml" in line]) == 2
    assert len([line for line in problems if "two.yaml" in line]) == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_demo(quiet: bool, mote: Mote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def sweep(source: str, output: Path, *, options: Any) -> dict[str, Any]:
        given.extend([source, output, list(options.overrides)])
        options.progress.start("training", 1)
        (output / "results.json").write_text(json.dumps(results.document()))
        return {}

    monkeypatch.setattr(mote_quant.sweeps.run, "sweep", sweep)
    result = mote("demo", "--output", tmp_path, "--set", "seeds=[7]", *(["--quiet"] if quiet else []))
    assert result.exit_code == 0, result.stderr
    assert given == ["digits", tmp_path, ["seeds=[7]"]]
    assert json.loads((tmp_path / "report.json").read_text())["points"]
    assert ("mote-int4" in result.stdout) is not quiet
    assert (str(tmp_path / "index.html") in result.stdout) is not quiet
    assert ("training" in result.stderr) is not quiet


def test_an_interrupted_demo_says_how_to_go_on(mote: Mote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mote_quant.sweeps.run, "sweep", run)
    result = mote("demo", "--output", tmp_path)
    assert result.exit_code == 130
    assert "same command again" in result.stderr
