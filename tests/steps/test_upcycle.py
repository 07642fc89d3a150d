from __future__ import annotations

import pytest
import torch

from mote_quant.errors import AlreadyMoEError, RequestError
from mote_quant.moe import blocks
from mote_quant.steps.upcycle import plan_layouts
from mote_quant.steps.upcycle.preservation import probe
from tests import pico
from tests.mixtures import TERNARY, bits_of, logits, mixture, recipe, step, upcycled

QUIET = {"noise": 0.0, "router_std": 0.02}


@pytest.mark.parametrize("family", pico.PICO)
def test_zero_init_leaves_the_logits_exactly_as_they_were(family):
    model = pico.PICO[family]()
    before = logits(model)
    context = upcycled(model, TERNARY, combine="zero_init")
    assert len(blocks(model)) == 2
    assert torch.equal(logits(model), before)
    assert context.notes["preservation"] == {"max_abs": 0.0, "relative": 0.0}


@pytest.mark.parametrize("combine", ["additive", "convex"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_the_receipt_equals_an_independent_computation(family, combine):
    model = pico.PICO[family]()
    ids = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    if family == "llava":
        ids[ids == pico.IMAGE_TOKEN] = 0
    with torch.no_grad():
        before = model(input_ids=ids).logits.double()
        context = upcycled(model, TERNARY, combine=combine)
        after = model(input_ids=ids).logits.double()
    receipt = context.notes["preservation"]
    assert receipt["max_abs"] == pytest.approx((after - before).abs().max().item(), rel=1e-4)
    assert receipt["relative"] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-4)
    assert receipt["relative"] > 0.01


def test_full_precision_convex_copies_are_the_dense_model():
    model = pico.PICO["llama"]()
    context = upcycled(model, combine="convex", **QUIET)
    assert context.notes["preservation"]["relative"] < 1e-5


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt"])
def test_copied_experts_hold_the_dense_weights(family):
    model = pico.PICO[family]()
    layout = plan_layouts(model, step(recipe(), type(recipe().pipeline[0].config)))[0]
    parent = layout.path.rpartition(".")[0] if layout.inline else layout.path
    dense = model.get_submodule(parent)
    up = dense.get_submodule(layout.up)
    weight = up.weight.detach().clone()
    bias = None if up.bias is None else up.bias.detach().clone()
    upcycled(model, TERNARY, **QUIET)
    for expert in blocks(model)[layout.path].experts:
        copied = expert.up_proj.weight
        assert torch.equal(copied, weight.t() if family == "gpt2" else weight)
        if bias is not None:
            assert torch.equal(expert.up_proj.bias, bias)


def test_noise_and_random_init_have_the_spread_they_say():
    dense = pico.PICO["llama"](hidden=64, ffn=96).model.layers[0].mlp.up_proj.weight.detach()
    noisy = next(iter(blocks(mixture(noise=0.5, hidden=64, ffn=96)).values())).experts
    difference = noisy[0].up_proj.weight - dense
    assert difference.std().item() == pytest.approx(0.5 * dense.std().item(), rel=0.05)
    assert not torch.equal(noisy[0].up_proj.weight, noisy[1].up_proj.weight)
    drawn = next(iter(blocks(mixture(init="random", hidden=64, ffn=96)).values())).experts[0].up_proj.weight
    assert drawn.std().item() == pytest.approx(dense.std().item(), rel=0.05)
    assert torch.corrcoef(torch.stack([drawn.flatten(), dense.flatten()]))[0, 1].abs() < 0.05


def test_the_router_is_drawn_from_its_spread_and_the_seed():
    first, second = (next(iter(blocks(mixture(router_std=0.5)).values())).gate.weight for _ in range(2))
    assert torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.5, rel=0.2)
    assert not next(iter(blocks(mixture(router_std=0.0)).values())).gate.weight.any()


def test_neither_random_state_nor_other_weights_are_touched():
    model = pico.PICO["llava"]()
    before, state = bits_of(model.state_dict()), torch.get_rng_state()
    upcycled(model, TERNARY)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    for name, tensor in before.items():
        kept = name if name in after and after[name].numel() else name.replace(".mlp.", ".mlp.shared_expert.")
        assert torch.equal(after[kept], tensor), name


def test_in_bfloat16_only_routers_and_latents_are_float32():
    model = pico.PICO["llama"]().to(torch.bfloat16)
    upcycled(model, TERNARY, combine="zero_init")
    ours = {p for block in blocks(model).values() for part in (block.gate, block.experts) for p in part.parameters()}
    assert {p.dtype for p in ours} == {torch.float32}
    assert {p.dtype for p in model.parameters() if p not in ours} == {torch.bfloat16}


def test_frozen_dense_blocks_give_frozen_mixtures():
    model = pico.PICO["llama"]()
    model.requires_grad_(False)
    upcycled(model, TERNARY)
    assert not any(p.requires_grad for p in model.parameters())


def test_layers_that_are_not_there():
    with pytest.raises(RequestError, match=r"upcycle.layers: \[7\] have no feed-forward block.*\[0, 1\]"):
        upcycled(pico.PICO["llama"](), layers=[0, 7])


def test_a_second_time_is_refused():
    model = mixture(TERNARY)
    with pytest.raises(AlreadyMoEError):
        upcycled(model, TERNARY)


def test_the_probe_is_the_same_every_time_and_leaves_the_mode():
    model = pico.PICO["qwen2_5_vl"]().train()
    assert torch.equal(probe(model), probe(model))
    assert model.training
