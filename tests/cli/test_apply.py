from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mote_quant
from mote_quant import estimate, pipeline
from mote_quant.cli.display import Lines
from mote_quant.errors import SaveError, TrainingError
from mote_quant.hf.loading import load_model
from mote_quant.machine import Machine

Mote = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("pico_data")


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_shows_the_plan_first_then_the_report_and_where_things_lie(finished: tuple[Any, Path]) -> None:
    result, out = finished
    assert result.exit_code == 0, result.stderr
    titles = ["Mixture layers", "What it will weigh", "What it will take", "On this machine", "What was done", str(out)]
    places = [result.stdout.index(title) for title in titles]
    assert places == sorted(places)


def test_progress_and_with_verbose_logs_go_to_stderr(finished: tuple[Any, Path]) -> None:
    said = finished[0].stderr
    assert "loading" in said
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
    assert "going on after step 2 of 4" in resumed.stderr
    assert "going on" not in stopped.stderr
    assert "complete already" not in resumed.stderr
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
    assert f"{out} is complete already; nothing to do" in again.stderr.splitlines()
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
    mote: Mote, recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(SaveError("disk full"))
    monkeypatch.setattr(pipeline, "apply", given)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("text")
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
    assert (result.exit_code, result.stderr) == (2, "error: the loss is nan\n")


def test_advice_for_python_is_not_for_the_command_line(
    mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = SaveError("disk full")
    error.advice = "the model object was changed"
    monkeypatch.setattr(pipeline, "apply", Given(error))
    assert "object" not in mote("apply", recipe, "-m", model, "-q").stderr


def on_a_machine(patch: pytest.MonkeyPatch, **has: int) -> None:
    """As if this machine had that."""
    machine = Machine(total_memory=2**40, free_memory=2**40, free_disk=2**40, threads=1)
    patch.setattr(estimate, "this_machine", lambda folder: replace(machine, **has))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    mote: Mote, recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, free_disk=1000)
    result = mote("apply", recipe, "-m", model, "-o", tmp_path / "out", "--no-times")
    assert result.exit_code == 2
    assert "1000 B free" in result.stderr
    planned = mote("plan", recipe, "-m", model, "--no-times").stdout
    assert "1000 B is free: `mote-quant apply` would refuse it" in planned
    assert "Run the same command again" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_run_needs_no_room(
    finished: tuple[Any, Path], mote: Mote, recipe: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, free_disk=0)
    again = mote("apply", recipe, "-m", model, "-o", finished[1], "-q")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "", "")
    assert "Careful" not in mote("apply", recipe, "-m", model, "-o", finished[1]).stdout


def test_too_little_memory_is_a_warning(
    mote: Mote, recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, free_memory=2**20)
    monkeypatch.setattr(pipeline, "apply", Given(TrainingError("far enough")))
    told = mote("apply", recipe, "-m", model, "-o", tmp_path / "out", "--no-times")
    assert "warning: this run needs about" in told.stderr
    assert "far enough" in told.stderr
    assert "Careful: this run needs about" in told.stdout
    assert "warning" not in mote("apply", recipe, "-m", model, "-o", tmp_path / "out", "-q").stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--data", "tran.jsonl"], "tran.jsonl"), (["--set", "pipeline.1.train.data=./tran.jsonl"], "tran.jsonl")],
)
def test_data_that_is_not_there_is_missed_before_the_model_is_opened(
    options: list[str], named: str, mote: Mote, recipe: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "apply", Given(AssertionError("too late")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    result = mote("apply", recipe, "-m", model, "-q", *options)
    assert result.exit_code == 2
    assert f"{named} does not exist; did you mean train.jsonl?" in result.stderr


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
