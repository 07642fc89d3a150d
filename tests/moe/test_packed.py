"""Packed experts as one operation: when it is taken, and that it is the loop over experts to rounding."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from mote_quant.errors import KernelError
from mote_quant.hf.structure import replace_module
from mote_quant.kernels import PackedLinear, table
from mote_quant.moe.block import MoteBlock
from mote_quant.moe.experts import route
from mote_quant.moe.packed import activation_name, gather, packed_route
from mote_quant.qat.linear import QatLinear
from tests.mixtures import TERNARY, one_block


def packed_block(bits: dict[str, Any] = TERNARY, dtype: torch.dtype = torch.float32, **settings: Any) -> MoteBlock:
    made = copy.deepcopy(one_block(bits, **settings))
    for name, module in list(made.named_modules()):
        if isinstance(module, QatLinear):
            replace_module(made, name, PackedLinear.pack(module.spec, module.codes(), module.bias, dtype))
    return made.eval()


def tokens(count: int, hidden: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """How many tokens every call of the op had."""
    seen: list[int] = []
    original = table.experts
    monkeypatch.setattr(table, "experts", lambda x, *rest: seen.append(len(x)) or original(x, *rest))
    return seen


@pytest.mark.parametrize("packing", ["2bit", "base3"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_the_op_is_the_loop_over_experts_to_rounding(family, top_k, packing, taken):
    block = packed_block({"routed": {"format": "ternary", "packing": packing}}, family=family, top_k=top_k)
    x = tokens(11)
    with torch.no_grad():
        choice = block.gate(x)
        found = packed_route(x, block.experts, choice, activation_name(block.activation))
        torch.testing.assert_close(found, route(x, block.experts, choice, block.activation), rtol=1e-4, atol=1e-6)
    assert taken == [11]


def test_tokens_that_are_spared_routed_experts_get_nothing_and_cost_nothing(taken):
    block = packed_block(top_k=2)
    block.layout = replace(block.layout, skip_below=0.5)
    x = tokens(24)
    with torch.no_grad():
        sure = block.gate(x).probabilities.amax(-1) >= 0.5
        y = block(x)
        torch.testing.assert_close(y[~sure], block.shared_expert(x)[~sure])
    assert 0 < int(sure.sum()) < 24
    assert taken == [2 * int(sure.sum())]


def test_no_token_at_all(taken):
    with torch.no_grad():
        assert packed_block()(tokens(0)).shape == (0, 32)


def test_where_gradients_are_asked_for_the_loop_gives_them(taken):
    block, x = packed_block(), tokens(3).requires_grad_()
    block(x).sum().backward()
    assert x.grad is not None
    assert block.gate.weight.grad is not None
    assert taken == []


@pytest.mark.parametrize(
    "bits",
    [
        {"routed": {"format": "ternary", "activations": "none"}},
        {"routed": {"format": "ternary", "granularity": "group", "group_size": 8}},
        {
            "*.experts.*.down_proj": {"format": "int4", "group_size": 8, "method": "qat"},
            "routed": {"format": "ternary"},
        },
        {"routed": {"format": "binary"}},
    ],
    ids=["no activations", "groups", "mixed", "binary"],
)
def test_experts_that_the_op_does_not_know_are_visited_one_by_one(bits, taken):
    block = packed_block(bits)
    assert gather(block.experts) is None
    with torch.no_grad():
        assert block(tokens(5)).shape == (5, 32)
    assert taken == []


def test_latent_experts_are_not_packed():
    assert gather(one_block(TERNARY).experts) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("silu", "silu"),
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
        ("relu", "relu"),
        ("relu2", "relu2"),
        ("mish", None),
        ("tanh", None),
    ],
)
def test_activations_are_known_by_what_they_compute(name, expected):
    assert activation_name(ACT2FN[name]) == expected


@pytest.mark.parametrize("name", ["gelu_10", "prelu", "laplace"])
def test_what_is_alike_only_near_0_or_learns_is_not_known(name):
    assert activation_name(nn.PReLU(init=0.0) if name == "prelu" else ACT2FN[name]) is None


def test_a_layer_that_does_something_when_it_is_called_is_called():
    block = packed_block()
    block.experts[1].down_proj.register_forward_pre_hook(lambda module, args: None)
    assert gather(block.experts) is None


def test_experts_of_which_some_layers_have_a_bias_are_visited_one_by_one():
    block = packed_block()
    layer = block.experts[0].down_proj
    layer.bias = nn.Parameter(torch.ones(layer.out_features), requires_grad=False)
    assert gather(block.experts) is None


def test_choices_and_gates_that_do_not_belong_together_are_refused():
    packed = gather(packed_block().experts)
    op = torch.ops.mote_quant.ternary_experts
    x, chosen, gates = tokens(3), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    for wrong in (
        (x[:, :9], chosen, gates),
        (x, chosen[:2], gates),
        (x, chosen, gates[:2]),
        (x, chosen.float(), gates),
    ):
        with pytest.raises(KernelError):
            op(*wrong, *packed, "silu")
