from __future__ import annotations

import dataclasses

import pytest
import torch

from mote_quant.hf.skeleton import shadow
from mote_quant.moe import MoteLayout, blocks, install
from mote_quant.moe.layout import PROJECTIONS
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import TernaryBits, Upcycle
from mote_quant.steps.upcycle import plan_layouts
from tests import pico

SPEC = dict.fromkeys(PROJECTIONS, TernaryBits(format="ternary"))


@pytest.mark.parametrize("family", pico.PICO)
def test_the_dense_block_becomes_the_shared_expert_untouched(family):
    model = pico.PICO[family]()
    before = {id(p) for p in model.parameters()}
    for layout in plan_layouts(model, Upcycle(), SPEC):
        install(model, layout)
    made = blocks(model)
    assert len(made) == 2
    shared = {id(p) for block in made.values() for p in block.shared_expert.parameters()}
    assert shared <= before
    assert before <= {id(p) for p in model.parameters()}  # nothing of the dense model is lost
    assert all(isinstance(m, QatLinear) for block in made.values() for e in block.experts for m in e.children())


def test_installing_draws_nothing_from_the_random_state():
    model = pico.PICO["llama"]()
    state = torch.get_rng_state()
    for layout in plan_layouts(model, Upcycle(), SPEC):
        install(model, layout)
    assert torch.equal(torch.get_rng_state(), state)


def test_on_a_meta_model_everything_stays_on_meta():
    model = shadow(pico.PICO["opt"]())
    for layout in plan_layouts(model, Upcycle(shared="none", top_k=2)):
        install(model, layout)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_without_shared_expert_the_dense_weights_are_gone():
    model = pico.PICO["gpt2"]()
    for layout in plan_layouts(model, Upcycle(shared="none", top_k=2)):
        install(model, layout)
    assert not any("shared_expert" in name for name in model.state_dict())


@pytest.mark.parametrize(("layers", "expected"), [("all", [0, 1, 2]), ("every_other", [0, 2]), ("first_half", [0, 1])])
def test_placements(layers, expected):
    model = pico.PICO["llama"](layers=3)
    found = plan_layouts(model, Upcycle(layers=layers))
    assert [int(layout.path.split(".")[2]) for layout in found] == expected


def test_a_list_of_layers_in_any_order():
    model = pico.PICO["llama"](layers=3)
    assert [layout.path for layout in plan_layouts(model, Upcycle(layers=[2, 0]))] == [
        "model.layers.0.mlp",
        "model.layers.2.mlp",
    ]


def test_layouts_survive_json():
    for layout in plan_layouts(pico.PICO["opt"](), Upcycle(combine="convex", mix=0.2), SPEC):
        assert MoteLayout.from_dict(layout.to_dict()) == layout
        plain = dataclasses.replace(layout, qat={})
        assert MoteLayout.from_dict(plain.to_dict()) == plain


def test_the_guard_under_the_dense_key_is_empty_and_saved():
    model = pico.PICO["llama"]()
    for layout in plan_layouts(model, Upcycle()):
        install(model, layout)
    guard = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert guard.numel() == 0
    assert guard.nbytes == 0
