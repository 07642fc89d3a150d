"""Low-rank experts through the pipeline: up-cycled, trained, packed, planned, saved and loaded."""

from __future__ import annotations

import pytest
import torch

from mote_quant.cli.planned import plan_tables
from mote_quant.errors import FormatError, RecipeError
from mote_quant.hf.saving import stored_bytes
from mote_quant.inspection import inspect
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.memory.ledger import weigh
from mote_quant.moe import blocks
from mote_quant.pipeline import apply
from mote_quant.planning import plan
from mote_quant.recipe import load
from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, logits, quantize_it, recipe, reloaded, train_it, upcycled

FAMILIES = ["llama", "qwen2", "opt", "gpt2", "llava"]
BFLOAT16 = {"routed": "bfloat16"}
INT8 = {"routed": {"format": "int8", "group_size": -1}}


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", pico.PICO)
def test_at_step_0_the_model_is_the_dense_one(family, top_k):
    model = pico.PICO[family]()
    before = logits(model)
    context = upcycled(model, lora_rank=4, top_k=top_k)
    assert len(blocks(model)) == 2
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert context.notes["preservation"]["relative"] < 1e-6


def test_what_the_matrices_start_from():
    model = pico.PICO["llama"](hidden=64, ffn=96)
    upcycled(model, lora_rank=32)
    experts = next(iter(blocks(model).values())).experts
    for expert in experts:
        for change in expert.children():
            a, b = change.lora_A.weight, change.lora_B.weight
            assert a.std().item() == pytest.approx(a.shape[1] ** -0.5, rel=0.1)
            assert a.shape[0] == b.shape[1] == 32
            assert not b.any()
    assert not torch.equal(experts[0].up_proj.lora_A.weight, experts[1].up_proj.lora_A.weight)


@pytest.mark.parametrize(
    "bits",
    [{}, INT4_SHARED, BFLOAT16, INT8, BFLOAT16 | INT4_SHARED],
    ids=["none", "shared int4", "bfloat16", "int8", "bfloat16 and int4"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_trained_packed_planned_and_reloaded(family, bits, tmp_path):
    model = pico.PICO[family]()
    before = logits(model)
    planned = plan(recipe(bits, lora_rank=4, top_k=2), model)
    context = upcycled(model, bits, lora_rank=4, top_k=2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train_it(model, context, learning_rate=0.1, steps=4)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(start[name], value)}
    assert all(".experts." in name or ".gate." in name for name in moved)
    assert any("lora_A" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    trained = logits(model)
    assert not torch.allclose(trained, before, atol=1e-3)
    if bits:
        quantize_it(model, context)
        assert not torch.equal(logits(model), trained)
    again = reloaded(model, tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert stored_bytes(tmp_path) == planned.result.stored_bytes
    assert inspect(tmp_path)["stored_bytes"] == planned.result.stored_bytes
    assert weigh(again).to_json() == planned.result.to_json()


def test_a_packed_shared_expert_carries_the_experts():
    model = pico.PICO["llama"]()
    context = upcycled(model, INT4_SHARED, lora_rank=4)
    train_it(model, context, learning_rate=0.1)
    quantize_it(model, context)
    block = next(iter(blocks(model).values()))
    assert isinstance(block.shared_expert.up_proj, PackedLinear)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, dense = block(x), block.shared_expert(x)
        assert (before - dense).abs().max() > 1e-3
        for expert in block.experts:
            for change in expert.children():
                change.lora_B.weight.zero_()
        torch.testing.assert_close(block(x), dense, rtol=1e-5, atol=1e-6)


def test_all_three_accountings_count_the_matrices():
    numbers = 2 * 4 * 3 * 4 * (32 + 48)
    ledger = plan(recipe(BFLOAT16, lora_rank=4), pico.PICO["llama"]()).result.roles["routed"]
    assert ledger.parameters == numbers
    assert ledger.paper_bytes == ledger.stored_bytes == ledger.resident_bytes == 2 * numbers


def test_bfloat16_matrices_beside_a_float32_model_cast_on_use():
    model = pico.PICO["qwen2"]()
    quantize_it(model, upcycled(model, BFLOAT16, lora_rank=2))
    change = next(iter(blocks(model).values())).experts[0].down_proj
    assert isinstance(change.lora_A, CastLinear)
    assert change.lora_A.weight.dtype == torch.bfloat16


def test_in_bfloat16_all_but_the_router_stays_bfloat16(tmp_path):
    model = pico.PICO["llama"]().to(torch.bfloat16)
    context = upcycled(model, lora_rank=4, top_k=2)
    assert context.notes["preservation"]["relative"] < 1e-2
    train_it(model, context, learning_rate=0.1, precision="bfloat16")
    block = next(iter(blocks(model).values()))
    assert {p.dtype for p in [*block.experts.parameters(), *block.shared_expert.parameters()]} == {torch.bfloat16}
    assert block(torch.randn(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert any(change.lora_B.weight.any() for expert in block.experts for change in expert.children())
    state = model.state_dict()
    again = reloaded(model, tmp_path).state_dict()
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype for name, tensor in again.items())


def test_over_a_base_that_is_packed_already(tmp_path):
    model = pico.PICO["llama"]()
    bits = {"ffn": {"format": "int4", "group_size": 16}}
    packed = apply({"name": "base", "bits": bits, "pipeline": [{"quantize": {}}]}, model)
    before = logits(packed)
    context = upcycled(packed, lora_rank=4)
    torch.testing.assert_close(logits(packed), before, rtol=1e-5, atol=1e-6)
    train_it(packed, context, learning_rate=0.1, steps=4)
    after = logits(packed)
    assert not torch.allclose(after, before, atol=1e-3)
    assert isinstance(next(iter(blocks(packed).values())).shared_expert.up_proj, PackedLinear)
    torch.testing.assert_close(logits(reloaded(packed, tmp_path)), after, rtol=1e-5, atol=1e-6)


def test_the_plan_says_what_the_experts_are():
    for settings, words in (({"lora_rank": 8}, "4 of rank 8"), ({"split": 2}, "4 of 1/2 width"), ({}, "4")):
        _, header, (row,) = next(plan_tables(plan(recipe(**settings), pico.PICO["llama"]())))
        assert row[header.index("experts")] == words


def test_ternary_matrices_are_refused():
    with pytest.raises(FormatError, match=r"cannot be ternary.*experts of lora_rank are trained in full"):
        plan(recipe(TERNARY, lora_rank=4), pico.PICO["llama"]())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shared": "none"}, "shared: none keeps none"),
        ({"combine": "zero_init"}, "use combine: additive"),
        ({"combine": "convex"}, "use combine: additive"),
        ({"init": "random"}, "init.*has a meaning only with experts of their own"),
        ({"noise": 0.1}, "noise.*has a meaning only with experts of their own"),
        ({"split": 2}, "split.*has a meaning only with experts of their own"),
        ({"lora_rank": 0}, "lora_rank"),
    ],
)
def test_what_does_not_go_together(settings, text):
    with pytest.raises(RecipeError, match=text):
        load({"name": "none", "pipeline": [{"upcycle": {"lora_rank": 4} | settings}]})
