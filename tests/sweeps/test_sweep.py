"""The tiny sweep end to end, in this process: points, cache, additions, failures, strangers."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import mote_quant
from mote_quant.errors import DataError, FingerprintError, RecipeError, SweepError
from mote_quant.evaluate import evaluate
from mote_quant.hf.loading import load_model
from mote_quant.sweeps.jobs.opening import open_data
from mote_quant.sweeps.run import Options


@pytest.fixture(scope="module")
def done(tiny_sweep: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The tiny sweep, carried out once by a real worker process."""
    folder = tmp_path_factory.mktemp("done") / "out"
    return folder, mote_quant.sweep(tiny_sweep, folder)


def test_every_contender_has_a_point_for_every_seed(done: tuple[Path, dict[str, Any]]) -> None:
    _, document = done
    found = {(point["contender"], point["seed"]) for point in document["points"]}
    names = ["dense-bf16", "dense-int4", "moe-bf16", "moe-int4", "mote"]
    assert found == {(name, seed) for name in names for seed in (0, 1)}
    assert not document["failures"]


def test_files_of_the_report(done: tuple[Path, dict[str, Any]]) -> None:
    folder, document = done
    for name in ("results.json", "points.csv", "report.md", "pareto.png", "index.html"):
        assert (folder / name).stat().st_size > 100, name
    assert json.loads((folder / "results.json").read_text())["points"] == document["points"]
    with (folder / "points.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(document["points"])


def test_a_point_is_its_model_reloaded(done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any]) -> None:
    folder, document = done
    point = next(p for p in document["points"] if p["contender"] == "mote" and p["seed"] == 1)
    model = load_model(folder / point["model"])
    source, _ = open_data(tiny_sweep["base"]["model"], tiny_sweep["data"], None, 16, 0)
    assert evaluate(model, source, limit=8)["loss"] == pytest.approx(point["loss"], rel=1e-6)


def test_the_whole_recipe_gives_the_model_of_its_cells(
    done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any]
) -> None:
    """Training and quantizing are two cells; the recipe in the page is one run. They must not differ."""
    folder, document = done
    point = next(p for p in document["points"] if p["contender"] == "mote" and p["seed"] == 0)
    import yaml

    base = tiny_sweep["base"]["model"]
    source, processor = open_data(base, tiny_sweep["data"], None, 16, 0)
    model = mote_quant.apply(yaml.safe_load(point["recipe"]), load_model(base), processor=processor, data=source)
    theirs = load_model(folder / point["model"]).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_bytes_are_those_of_the_files(done: tuple[Path, dict[str, Any]]) -> None:
    folder, document = done
    for point in document["points"]:
        inspected = mote_quant.inspect(folder / point["model"])
        experts = sum(inspected["roles"].get(r, {}).get("stored_bytes", 0) for r in ("routed", "shared", "ffn"))
        assert point["stored_bytes"] == experts
        assert point["model_stored_bytes"] == inspected["stored_bytes"]


def test_rates_are_chosen_on_validation(done: tuple[Path, dict[str, Any]]) -> None:
    _, document = done
    for family in ("moe", "mote"):
        rows = [row for row in document["grid"] if row["family"] == family]
        best = min(rows, key=lambda row: row["validation"])
        assert [row["learning_rate"] for row in rows if row["chosen"]] == [best["learning_rate"]]
        used = {p["learning_rate"] for p in document["points"] if p["family"] == family}
        assert used == {best["learning_rate"]}


def test_a_finished_sweep_runs_nothing(
    done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any], ran: list[str]
) -> None:
    folder, document = done
    again = mote_quant.sweep(tiny_sweep, folder)
    assert ran == []
    assert again["points"] == document["points"]


def test_an_added_contender_runs_only_its_own_cells(
    done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(done[0], folder)
    more = copy.deepcopy(tiny_sweep)
    more["contenders"]["moe"]["variants"]["int8"] = {"routed": "int8"}
    document = mote_quant.sweep(more, folder)
    assert sorted(ran) == ["measure", "measure", "quantize", "quantize", "weigh"]
    assert {p["contender"] for p in document["points"]} >= {"moe-int8", "mote"}


def test_other_text_makes_every_cell_anew(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("one two three " * 3000)
    small = _only(tiny_sweep, "dense") | {"data": str(text), "seeds": [0]}
    mote_quant.sweep(small, tmp_path / "out")
    ran.clear()
    text.write_text("four five six " * 3000)
    mote_quant.sweep(small, tmp_path / "out")
    assert ran.count("quantize") == 2


def test_a_failure_costs_only_what_needs_it(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    broken = copy.deepcopy(tiny_sweep) | {"seeds": [0], "learning_rates": [1.0e38]}
    broken["contenders"]["mote"]["train"]["max_grad_norm"] = 1.0e38
    with pytest.raises(SweepError, match=r"train m\w+, rate 1e\+38: the loss is (nan|inf)"):
        mote_quant.sweep(broken, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"dense-bf16", "dense-int4"} <= {point["contender"] for point in document["points"]}
    assert document["failures"]


def test_a_rate_that_fails_leaves_the_others(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    sweep = _only(tiny_sweep, "mote") | {"seeds": [0], "learning_rates": [1.0e-3, 1.0e38]}
    with pytest.raises(SweepError, match=r"1 of the sweep's cells"):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [point["learning_rate"] for point in document["points"]] == [1.0e-3]


def test_a_contender_that_cannot_be_built_is_listed(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    sweep = _only(tiny_sweep, "dense") | {"seeds": [0]}
    sweep["contenders"]["odd"] = {"group": "odd", "bits": {"re:.*no_such_layer": "int4"}}
    with pytest.raises(SweepError, match="no_such_layer matches no"):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(document["points"]) == 2


def test_an_unknown_task_is_listed_and_the_rest_goes_on(
    tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    sweep = _only(tiny_sweep, "dense") | {"seeds": [0], "tasks": ["no_such_task"]}
    with pytest.raises(SweepError, match="no_such_task"):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(document["points"]) == 2
    assert document["failures"][0]["cell"] == "task no_such_task"
    ran.clear()
    with pytest.raises(SweepError, match="no_such_task"):
        mote_quant.sweep(sweep, tmp_path / "out")
    assert ran == ["weigh"]  # it may have been installed since


def test_budgets_nothing_fits(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    sweep = copy.deepcopy(tiny_sweep) | {"budgets": ["1B"]}
    with pytest.raises(SweepError, match="budget 1B: nothing fits; the smallest is dense-int4"):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(document["misfits"]) == 5


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_corrupt_cell_is_named(
    done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(done[0], folder)
    victim = next(folder.glob("cells/measure-*/result.json"))
    text = victim.read_text()
    victim.write_text(text[:40] if damage == "truncated" else text.replace('"loss": ', '"loss": 1'))
    with pytest.raises(SweepError, match=f"{victim.parent.name}.*delete"):
        mote_quant.sweep(tiny_sweep, folder)
    document = json.loads((folder / "results.json").read_text())
    assert len(document["points"]) == len(done[1]["points"]) - 1
    shutil.rmtree(victim.parent)
    ran.clear()
    again = mote_quant.sweep(tiny_sweep, folder)
    assert ran == ["measure"]
    assert [p["loss"] for p in again["points"]] == [p["loss"] for p in done[1]["points"]]


def test_a_rate_whose_last_step_breaks_the_model_is_not_chosen(
    tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    """The loss of a step is of the weights before it; only validation sees what the last step did."""
    sweep = _only(tiny_sweep, "mote") | {"seeds": [0], "learning_rates": [1.0e38, 1.0e-3]}
    sweep["train"] = sweep["train"] | {"steps": 1, "warmup": 0.0}
    with pytest.raises(SweepError, match=r"rate 1e\+38: "):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [point["learning_rate"] for point in document["points"]] == [1.0e-3]


def test_a_task_that_fails_costs_no_other_figure(
    tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mote_quant.sweeps.jobs import measure, weigh

    def run_tasks(model: Any, processor: Any, tasks: list[str], **options: Any) -> dict[str, float]:
        if tasks == ["bad"]:
            raise AssertionError("no such luck")
        return {"good.acc": 0.5}

    monkeypatch.setattr(measure, "run_tasks", run_tasks)
    monkeypatch.setattr(weigh, "_checked", dict.fromkeys)
    sweep = _only(tiny_sweep, "dense") | {"seeds": [0], "tasks": ["bad", "good"]}
    with pytest.raises(SweepError, match="task bad, measure dense-bf16, seed 0: AssertionError: no such luck"):
        mote_quant.sweep(sweep, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [point["good.acc"] for point in document["points"]] == [0.5, 0.5]
    assert [row["cells"] for row in document["failures"]] == [2]


def test_a_score_nobody_has(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    sweep = _only(tiny_sweep, "dense") | {"seeds": [0], "score": "accuracy"}
    with pytest.raises(SweepError, match="score accuracy: no contender has it; measured are"):
        mote_quant.sweep(sweep, tmp_path / "out")


def test_the_folder_of_a_sweep_at_work_is_refused(
    done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any]
) -> None:
    with FileLock(done[0] / ".lock"), pytest.raises(FingerprintError, match="another sweep is at work"):
        mote_quant.sweep(tiny_sweep, done[0])


def test_other_weights_of_a_teacher_make_its_pupils_anew(
    tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_sweep["base"]["model"], teacher)
    sweep = _only(tiny_sweep, "mote") | {"seeds": [0], "learning_rates": [1.0e-3]}
    sweep["contenders"]["mote"]["train"]["distill"] = {"teacher": str(teacher)}
    mote_quant.sweep(sweep, tmp_path / "out")
    assert ran.count("train") == 1
    other = load_model(teacher)
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    other.save_pretrained(teacher)
    mote_quant.sweep(sweep, tmp_path / "out")
    assert ran.count("train") == 2


def test_what_is_trained_alike_is_trained_once(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    sweep = _only(tiny_sweep, "mote") | {"seeds": [0], "learning_rates": [1.0e-3]}
    sweep["contenders"]["again"] = sweep["contenders"]["mote"] | {"bits": {"shared": "int8"}}
    mote_quant.sweep(sweep, tmp_path / "out")
    assert ran.count("train") == 1


def test_controls_are_paired(done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any], ran: list[str]) -> None:
    mote_quant.sweep(tiny_sweep | {"controls": {"mote": "moe-int4"}}, done[0])
    assert "Beside their controls" in (done[0] / "report.md").read_text()
    assert ran == []


def test_another_sweeps_folder_is_refused(done: tuple[Path, dict[str, Any]], tiny_sweep: dict[str, Any]) -> None:
    with pytest.raises(FingerprintError, match="holds another sweep: name was tiny, is now other"):
        mote_quant.sweep(tiny_sweep | {"name": "other"}, done[0])


def test_a_strangers_folder_is_refused(tiny_sweep: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FingerprintError, match="not empty"):
        mote_quant.sweep(tiny_sweep, tmp_path)


def test_data_that_is_not_there(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist"):
        mote_quant.sweep(tiny_sweep | {"data": "nowhere.jsonl"}, tmp_path / "out")


def test_overrides(tiny_sweep: dict[str, Any], ran: list[str], tmp_path: Path) -> None:
    options = Options(overrides=["seeds=[5]"])
    document = mote_quant.sweep(_only(tiny_sweep, "dense"), tmp_path / "out", options=options)
    assert {point["seed"] for point in document["points"]} == {5}


def test_mistakes_are_refused_before_anything_is_written(tiny_sweep: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean seeds"):
        mote_quant.sweep({**tiny_sweep, "seed": [0]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _only(sweep: dict[str, Any], *names: str) -> dict[str, Any]:
    kept = copy.deepcopy(sweep)
    kept["contenders"] = {name: kept["contenders"][name] for name in names}
    return kept
