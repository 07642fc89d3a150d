"""The demo's parts; the whole of it is `make demo`."""

from __future__ import annotations

import copy
import json
from importlib import import_module

import pytest

from mote_quant.data.digits_vqa.model import build_config
from mote_quant.demo.contenders import DENSE, MOE, MOTE, contenders, training_recipes
from mote_quant.demo.page import HEADER, markdown, render_page, rows
from mote_quant.errors import RunError
from mote_quant.evaluate.chart import draw_pareto
from mote_quant.hf.skeleton import skeleton_of
from mote_quant.planning import plan_on
from mote_quant.recipe.schema import Train

POINTS = [
    {"contender": name, "seed": 0, "train_seconds": 9.6, "accuracy": accuracy, "loss": 0.5,
     "paper_bytes": size, "stored_bytes": size + 512, "resident_bytes": size + 512, "model_stored_bytes": 2 * size}
    for name, accuracy, size in [("dense-bf16", 0.5, 4096), ("mote-int4", 0.75, 6144), ("moe-int3", 0.625, 6144)]
]  # fmt: skip


def trained(base):
    """The meta skeleton of a contender's trained model, by planning what trains it."""
    skeleton = skeleton_of(build_config())
    if base != DENSE:
        plan_on(training_recipes(0)[base], skeleton)
    return skeleton


def test_every_contender_can_be_planned_on_what_it_starts_from():
    for contender in contenders(0):
        planned = plan_on(contender.tail, copy.deepcopy(trained(contender.base)))
        assert planned.result.stored_bytes < planned.dense.stored_bytes


def test_mote_with_an_int4_shared_expert_weighs_what_the_int3_moe_weighs_in_the_papers_accounting():
    paper = {c.name: plan_on(c.tail, trained(c.base)).result.paper_gib["experts"] for c in contenders(0)}
    assert paper["mote-int4"] == pytest.approx(paper["moe-int3"])
    assert paper["moe-bf16"] == pytest.approx(4 * paper["dense-bf16"])


def test_the_mixtures_see_the_same_data_steps_batches_and_seed():
    recipes = training_recipes(7)
    steps = {base: [s.config for s in recipes[base].pipeline if isinstance(s.config, Train)] for base in (MOTE, MOE)}
    (mote,), (moe,) = steps[MOTE], steps[MOE]
    for setting in ("data", "steps", "batch_size", "schedule", "warmup", "balance_loss", "what"):
        assert getattr(mote, setting) == getattr(moe, setting)
    assert {recipe.seed for recipe in recipes.values()} == {7}


def test_table_page_and_picture_show_every_point(tmp_path):
    picture = tmp_path / "pareto.png"
    draw_pareto(POINTS, picture, title="test")
    assert picture.read_bytes().startswith(b"\x89PNG")
    page = render_page(POINTS, picture)
    for point, row in zip(POINTS, rows(POINTS), strict=True):
        assert point["contender"] in page
        assert all(cell in markdown(POINTS) for cell in row)
    assert all(cell in page for cell in HEADER)
    assert "http" not in page


def test_a_failed_reload_is_an_error_with_its_reason(tmp_path):
    measure = import_module("mote_quant.demo.run")._measure_in_fresh_processes
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(RunError, match="fresh process failed"):
        measure([tmp_path], 0)
