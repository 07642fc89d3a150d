"""Fine-grained experts: `split` consecutive ones are one copy of the dense feed-forward network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mote_quant.errors import RecipeError, RequestError
from mote_quant.hf.saving import stored_bytes
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import MoteLayout, blocks
from mote_quant.planning import plan
from mote_quant.recipe import load
from tests import pico
from tests.mixtures import (
    INT4_SHARED,
    TERNARY,
    logits,
    mixture,
    quantize_it,
    recipe,
    reloaded,
    tensors_in,
    train_it,
    upcycled,
)

FAMILIES = ["llama", "qwen2", "opt", "gpt2", "llava"]
INT4 = {"routed": {"format": "int4", "group_size": 8}}


def tokens(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("split", "top_k"), [(2, 2), (3, 4)])
def test_the_pieces_of_a_copy_sum_to_the_dense_block(family, split, top_k):
    for block in blocks(mixture(family=family, experts=6, top_k=top_k, split=split, noise=0.0)).values():
        assert block.layout.expert_size == 48 // split
        assert {expert.up_proj.out_features for expert in block.experts} == {48 // split}
        dense = block.shared_expert(tokens())
        for copy in range(0, 6, split):
            pieces = [block.visit(number, tokens()) for number in range(copy, copy + split)]
            torch.testing.assert_close(sum(pieces), dense, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(pieces[0], pieces[1], atol=1e-3)


def test_a_token_that_gets_a_whole_copy_at_gates_of_one_gets_the_dense_block():
    block = next(iter(blocks(mixture(experts=4, top_k=2, split=2, noise=0.0, shared="none")).values()))
    block.layout = replace(block.layout, normalize_gates=True)
    with torch.no_grad():
        # Normalised gates of a copy's two pieces are one half each.
        block.gate.weight.zero_()
        block.gate.weight[2:] += 1.0
        x = tokens().abs()
        dense = pico.PICO["llama"]().model.layers[0].mlp(x)
        torch.testing.assert_close(2 * block(x), dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_as_many_weights_as_half_as_many_wide_experts(family):
    def routed(**settings):
        return plan(recipe(**settings), pico.PICO[family]()).result.roles["routed"]

    narrow, wide = routed(experts=8, top_k=2, split=2), routed(experts=4)
    biases = 4 * 2 * 32 if family == "opt" else 0  # every piece has a bias of its own on its output
    assert narrow.parameters == wide.parameters + biases
    assert narrow.paper_bytes == wide.paper_bytes


def test_random_draws_have_the_spread_of_the_dense_weights():
    model = mixture(init="random", noise=0.0, split=2, hidden=64, ffn=96)
    block = next(iter(blocks(model).values()))
    for ours, theirs in (("up_proj", "up_proj"), ("down_proj", "down_proj")):
        drawn = block.experts[0].get_submodule(ours).weight
        dense = block.shared_expert.get_submodule(theirs).weight
        assert drawn.std().item() == pytest.approx(dense.std().item(), rel=0.05)
    first, second = (block.experts[number].up_proj.weight for number in (0, 2))
    assert not torch.allclose(first, second)


def test_noise_sets_copies_apart():
    block = next(iter(blocks(mixture(split=2, noise=0.3)).values()))
    assert not torch.equal(block.experts[0].up_proj.weight, block.experts[2].up_proj.weight)


@pytest.mark.parametrize("bits", [{}, INT4, TERNARY, TERNARY | INT4_SHARED], ids=["none", "int4", "ternary", "both"])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "llava"])
def test_trained_packed_planned_and_reloaded(family, bits, tmp_path):
    model = pico.PICO[family]()
    planned = plan(recipe(bits, experts=4, top_k=2, split=2), model)
    context = upcycled(model, bits, experts=4, top_k=2, split=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_it(model, context, learning_rate=0.05)
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items() if "experts" in name)
    if bits:
        quantize_it(model, context)
        kinds = {type(m) for block in blocks(model).values() for e in block.experts for m in e.children()}
        assert kinds == {PackedLinear}
    again = reloaded(model, tmp_path)
    assert {block.layout.expert_size for block in blocks(again).values()} == {24}
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert stored_bytes(tmp_path) == planned.result.stored_bytes
    assert sum(tensor.nbytes for tensor in tensors_in(tmp_path).values()) == planned.result.stored_bytes


def test_a_width_that_does_not_divide_is_named():
    with pytest.raises(RequestError, match=r"upcycle.split: 5 does not divide the width 48 of model.layers.0.mlp"):
        plan(recipe(split=5), pico.PICO["llama"]())
    with pytest.raises(RecipeError, match="split"):
        load({"name": "none", "pipeline": [{"upcycle": {"split": 0}}]})


def test_layouts_keep_their_split():
    layout = plan(recipe(split=3, experts=6), pico.PICO["opt"]()).layouts[0]
    assert MoteLayout.from_dict(layout.to_dict()) == layout
    assert layout.expert_size == 16
    old = {key: value for key, value in layout.to_dict().items() if key not in ("split", "lora_rank")}
    assert MoteLayout.from_dict(old).expert_size == 48
    with pytest.raises(ValueError, match="cannot be split by 7"):
        MoteLayout.from_dict(layout.to_dict() | {"split": 7})
