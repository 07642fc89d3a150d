"""Sweep files: mistakes with their places, candidates and their recipes, budgets."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mote_quant.errors import RecipeError, RequestError
from mote_quant.recipe.schema import IntegerBits, TernaryBits
from mote_quant.sweeps.budgets import select
from mote_quant.sweeps.catalogue import shipped_sweeps
from mote_quant.sweeps.graph import Graph
from mote_quant.sweeps.identity import Hashes
from mote_quant.sweeps.load import load_sweep
from mote_quant.sweeps.schema import budget_bytes
from tests.sweeps.tiny import TINY, tiny


def _with(path: str, value: Any) -> dict[str, Any]:
    sweep: Any = copy.deepcopy(TINY)
    *way, last = path.split(".")
    node = sweep
    for key in way:
        node = node[key]
    node[last] = value
    return sweep


MISTAKES = {
    "unknown key at the top": ("seed", 1, "unknown key; did you mean seeds"),
    "unknown key of a contender": ("contenders.moe.upcyle", {}, "did you mean upcycle"),
    "unknown key of the base": ("base.reciep", "x", "did you mean recipe"),
    "unknown key of measure": ("measure.sample", 1, "did you mean samples"),
    "unknown setting of a step": ("contenders.moe.train.stepz", 3, "did you mean steps"),
    "a rate of one's own": ("contenders.moe.train.learning_rate", 0.1, "it is chosen from the sweep's learning_rates"),
    "a common rate": ("train.learning_rate", 0.1, "it is chosen from the sweep's learning_rates"),
    "a search of one's own": ("contenders.moe.train.search", {"learning_rates": [0.1, 0.2]}, "chosen from the sweep's"),
    "a common search": ("train.search", {"learning_rates": [0.1, 0.2]}, "chosen from the sweep's learning_rates"),
    "data of one's own": ("contenders.moe.train.data", "x.txt", "it is the sweep's data"),
    "steps of one's own": ("contenders.moe.train.steps", 9, "same for everybody"),
    "a length of one's own": ("contenders.moe.train.max_length", 8, "same for everybody"),
    "calibration data of one's own": ("contenders.moe.quantize", {"calibration": {"data": "x"}}, "the sweep's data"),
    "another length of calibration": ("quantize.calibration.max_length", 8, "cut once"),
    "a score of no direction": ("score", "loudness", "which end is better|better end is known"),
    "a control that is not there": ("controls", {"moe-int4": "moe-int5"}, "there is no line moe-int5; did you mean"),
    "two lines of one name": ("contenders.dense-int4", {"group": "x", "bits": {"ffn": "int8"}}, "is what dense makes"),
    "more chosen than there are": ("contenders.moe.upcycle.top_k", 9, "at most the number of experts"),
    "a budget that is no size": ("budgets", ["lots"], "is not a size"),
    "a relative budget of nothing": ("budgets", ["0x"], "at least one byte"),
    "headlines about nobody": ("ours", "Moat", "no contender is of group Moat"),
    "an unknown format": ("contenders.mote.qat.routed", "ternery", "did you mean ternary"),
    "no formats": ("contenders.bare", {"group": "x"}, None),
    "formats by training without a mixture": ("contenders.dense.qat", {"ffn": "ternary"}, "upcycle"),
    "numbers of experts without a mixture": ("contenders.dense.experts", [2], "upcycle"),
    "a repeated seed": ("seeds", [1, 1], "named twice"),
    "a name with a slash": ("contenders.moe/x", {"group": "x", "bits": {"ffn": "int4"}}, "name"),
    "no contenders": ("contenders", {}, "empty|at least"),
}


@pytest.mark.parametrize(("path", "value", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(path: str, value: Any, said: str | None) -> None:
    if said is None:
        assert "bare" in {candidate.family for candidate in load_sweep(_with(path, value)).candidates}
        return
    with pytest.raises(RecipeError, match=said):
        load_sweep(_with(path, value))


def test_no_formats_at_all() -> None:
    sweep = tiny(bits={})
    sweep["contenders"] = {"bare": {"group": "x"}}
    with pytest.raises(RecipeError, match="gives no formats"):
        load_sweep(sweep)


def test_a_mistake_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    text = yaml.safe_dump(_with("contenders.moe.train.stepz", 3), sort_keys=False)
    path.write_text(text)
    line = text[: text.index("stepz")].count("\n") + 1
    with pytest.raises(RecipeError, match=rf"sweep\.yaml:{line}: .*stepz"):
        load_sweep(path)


def test_unknown_sweeps_have_near_misses() -> None:
    with pytest.raises(RecipeError, match="did you mean digits"):
        load_sweep("digit")


def test_what_is_trained_and_what_comes_after() -> None:
    found = {candidate.name: candidate for candidate in load_sweep(tiny()).candidates}
    assert list(found) == ["dense-bf16", "dense-int4", "moe-bf16", "moe-int4", "mote"]
    mote, dense = found["mote"], found["dense-int4"]
    assert mote.training is not None
    assert {target: type(spec) for target, spec in mote.training.bits.items()} == {"routed": TernaryBits}
    assert [step.name for step in mote.training.pipeline] == ["upcycle", "train"]
    assert [step.name for step in mote.tail.pipeline] == ["quantize"]
    assert list(mote.tail.bits) == ["routed", "shared", "router", "*"]
    assert dense.training is None
    assert list(dense.tail.bits) == ["ffn", "*"]
    assert isinstance(dense.tail.bits["ffn"], IntegerBits)


def test_all_trained_contenders_train_alike() -> None:
    trainings = [candidate.training for candidate in load_sweep(tiny()).candidates if candidate.training]
    steps = [training.pipeline[-1].train.model_dump(exclude={"what"}) for training in trainings]
    assert all(step == steps[0] for step in steps)


def test_numbers_of_experts_are_candidates() -> None:
    sweep = _with("contenders.moe.experts", [2, 3])
    names = [candidate.name for candidate in load_sweep(sweep).candidates]
    assert names[2:6] == ["moe-2e-bf16", "moe-3e-bf16", "moe-2e-int4", "moe-3e-int4"]


def _selected(budgets: list[str], sizes: dict[str, int]) -> Any:
    sweep = _with("contenders.moe.experts", [2, 3]) | {"budgets": budgets}
    loaded = load_sweep(sweep)
    weights = {c.name: {"stored_bytes": sizes.get(c.name, 10**9)} for c in loaded.candidates}
    return select(loaded.sweep, loaded.candidates, weights, dense_bytes=1000)


def test_of_each_line_the_most_experts_that_fit() -> None:
    found = _selected(["2x", "3KB"], {"moe-2e-int4": 1500, "moe-3e-int4": 2500, "dense-int4": 500})
    assert found.fits == {"dense-int4": ["2x", "3KB"], "moe-2e-int4": ["2x", "3KB"], "moe-3e-int4": ["3KB"]}
    assert {row["budget"] for row in found.misfits if row["contender"] == "mote"} == {"2x", "3KB"}


def test_a_budget_that_nobody_is_within() -> None:
    found = _selected(["0.1x", "1KB"], {"dense-int4": 500})
    assert found.unmet == {"0.1x": "nothing fits; the smallest is dense-int4 with 500 B"}


@pytest.mark.parametrize(("text", "size"), [("3.4GB", 3650722201), ("0.75x", 750), (".5 x", 500), ("4096", 4096)])
def test_budgets(text: str, size: int) -> None:
    assert budget_bytes(text, 1000) == size


@pytest.mark.parametrize("text", ["", "x", "-1x", "1xx", "3.4 PB", "nan x", "0"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RequestError):
        budget_bytes(text, 1000)


def _taught(teacher: str) -> dict[str, Any]:
    return _with("contenders.mote.train", {"what": ["routed", "router"], "distill": {"teacher": teacher}})


def test_a_teacher_is_trained_first(tmp_path: Path) -> None:
    loaded = load_sweep(_taught("@moe"))
    graph = Graph(loaded.sweep, tmp_path, {}, {}, {}, Hashes(tmp_path))
    names = [node.name for node in graph.work(loaded.candidates, {"mote"})]
    assert names.index("train moe, seed 0") < names.index("train mote, rate 0.001")
    assert "measure moe-int4, seed 0" not in names
    rate = next(node for node in graph.work(loaded.candidates, {"mote"}) if node.name == "train mote, rate 0.001")
    assert "train moe, seed 0" in rate.needs


@pytest.mark.parametrize(("teacher", "said"), [("@moo", "no trained contender"), ("@mote", "learns from itself")])
def test_teachers_that_cannot_be(teacher: str, said: str, tmp_path: Path) -> None:
    loaded = load_sweep(_taught(teacher))
    with pytest.raises(RequestError, match=said):
        Graph(loaded.sweep, tmp_path, {}, {}, {}, Hashes(tmp_path)).work(loaded.candidates, {"mote"})


def test_shipped_sweeps_can_be_read() -> None:
    assert {"digits", "reviewers", "tinystories"} <= set(shipped_sweeps())
    for name in shipped_sweeps():
        assert load_sweep(name).candidates, name
