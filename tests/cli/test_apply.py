from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mote_quant
from mote_quant import pipeline
from mote_quant.cli.progress import Lines
from mote_quant.errors import SaveError, TrainingError
from mote_quant.hf.loading import load_model

Mote = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("pico_data")


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_shows_the_plan_first_then_the_report_and_where_things_lie(finished: tuple[Any, Path]) -> None:
    result, out = finished
    assert result.exit_code == 0, result.stderr
    titles = ["Mixture layers", "What it will weigh", "What was done", str(out)]
    places = [result.stdout.index(title) for title in titles]
    assert places == sorted(places)


def test_progress_and_with_verbose_logs_go_to_stderr(finished: tuple[Any, Path]) -> None:
    said = finished[0].stderr
    assert "opening" in said
    assert "training 4/4" in said
    assert "loss" in said
    assert "step 2 of 3: train" in said


def test_python_gives_the_same_file(finished: tuple[Any, Path], recipe: str, model: str, tmp_path: Path) -> None:
    mote_quant.apply(recipe, load_model(model), output=tmp_path / "out")
    assert weights(tmp_path / "out") == weights(finished[1])


def test_an_interrupted_run_says_how_to_go_on_and_then_ends_in_the_same_bits(
    finished: tuple[Any, Path], mote: Mote, recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("apply", recipe, "-m", model, "-o", out, "--json")

    def interrupt(display: Lines, done: int, **figures: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "advance", interrupt)
        stopped = mote(*command)
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-2:] == [
        "interrupted",
        f"Run the same command again to resume; what is done so far lies in {out}.",
    ]
    resumed = mote(*command)
    assert resumed.exit_code == 0, resumed.stderr
    assert "training 2/4" not in resumed.stderr
    assert weights(out) == weights(finished[1])
    report = json.loads(resumed.stdout)
    assert report == json.loads((out / "run" / "report.json").read_text())
    assert set(report) == {"recipe", "steps", "preservation", "bytes", "metrics", "coverage", "provenance"}
    assert set(report["preservation"]) >= {"max_abs", "relative"}


def test_quiet_says_nothing(mote: Mote, recipe: str, model: str, tmp_path: Path) -> None:
    result = mote("apply", recipe, "-m", model, "-o", tmp_path / "out", "--set", "pipeline.1.train.steps=1", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_finished_run_is_left_as_it_is(finished: tuple[Any, Path], mote: Mote, recipe: str, model: str) -> None:
    out = finished[1]
    before = weights(out)
    again = mote("apply", recipe, "-m", model, "-o", out)
    assert again.exit_code == 0, again.stderr
    assert "What was done" in again.stdout
    assert "training" not in again.stderr
    another = mote("apply", recipe, "-m", model, "-o", out, "--set", "seed=4")
    assert another.exit_code == 2
    assert "seed was 3, is now 4" in another.stderr
    assert weights(out) == before


@pytest.mark.parametrize("flags", [(), ("--json",), ("--quiet",)])
def test_a_dry_run_shows_the_plan_and_leaves_nothing_behind(
    flags: tuple[str, ...],
    mote: Mote,
    recipe: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pico_data: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = mote("apply", recipe, "-m", model, "--dry-run", *flags)
    assert result.exit_code == 0, result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert pico_data == []
    shown = {(): "Mixture layers", ("--json",): '"mixture_layers"', ("--quiet",): ""}[flags]
    assert shown in result.stdout
    assert bool(result.stdout) == bool(shown)


class Given:
    """Stands in for `pipeline.apply`: keeps what it was given, then raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, recipe: Any, model: Any, **options: Any) -> None:
        self.recipe, self.options = recipe, options
        raise self.error


def test_options_reach_the_pipeline_and_the_folder_has_a_default(
    mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(SaveError("disk full"))
    monkeypatch.setattr(pipeline, "apply", given)
    result = mote("apply", recipe, "-m", model, "--set", "bits.shared.format=int8", "--data", "x.txt", "--keep-steps")
    assert given.recipe.bits["shared"].format == "int8"
    assert given.options["data"] == "x.txt"
    assert given.options["options"].keep_steps
    assert given.options["output"] == Path("runs/tiny")
    assert result.exit_code == 3
    assert result.stderr.endswith(
        "error: disk full\nRun the same command again to resume; what is done so far lies in runs/tiny.\n"
    )


def test_a_bug_is_one_line_and_with_debug_a_traceback(
    mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "apply", Given(ZeroDivisionError("by zero")))
    plain = mote("apply", recipe, "-m", model, "-q")
    assert plain.exit_code == 3
    assert "unexpected ZeroDivisionError: by zero" in plain.stderr
    assert "--debug" in plain.stderr
    assert "Traceback" not in plain.stderr
    debug = mote("--debug", "apply", recipe, "-m", model, "-q")
    assert debug.exit_code == 3
    assert "Traceback" in debug.stderr


def test_a_recipe_that_cannot_train_is_not_to_be_resumed(
    mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "apply", Given(TrainingError("the loss is nan")))
    result = mote("apply", recipe, "-m", model, "-q")
    assert (result.exit_code, result.stderr) == (3, "error: the loss is nan\n")


def test_advice_for_python_is_not_for_the_command_line(
    mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = SaveError("disk full")
    error.advice = "the model object was changed"
    monkeypatch.setattr(pipeline, "apply", Given(error))
    assert "object" not in mote("apply", recipe, "-m", model, "-q").stderr


def test_data_with_an_empty_name(mote: Mote, recipe: str, model: str, tmp_path: Path) -> None:
    result = mote("apply", recipe, "-m", model, "-o", tmp_path / "out", "--data", "", "-q")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: data is empty")


@pytest.mark.parametrize("content", [None, "", "{}"])
def test_a_finished_run_without_its_report_is_finished(
    finished: tuple[Any, Path], mote: Mote, recipe: str, model: str, tmp_path: Path, content: str | None
) -> None:
    out = Path(shutil.copytree(finished[1], tmp_path / "copy"))
    report = out / "run" / "report.json"
    report.unlink() if content is None else report.write_text(content)
    command = ("apply", recipe, "-m", model, "-o", out)
    quiet = mote(*command, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    for flags in ((), ("--json",)):
        told = mote(*command, *flags)
        assert told.exit_code == 0
        assert f"warning: the run is complete, but its report is not: {report}" in told.stderr
