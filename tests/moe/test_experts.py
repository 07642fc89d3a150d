from __future__ import annotations

import pytest
import torch

from mote_quant.moe.experts import Experts, permute, route
from mote_quant.moe.router import Choice
from mote_quant.qat.fake import fake_quantize
from mote_quant.ternary.activation import fake_quantize_activations
from tests.mixtures import TERNARY, one_block

FULL: dict = {}
TERNARY_FLOAT_INPUT = {"routed": {"format": "ternary", "activations": "none"}}


def tokens(count: int, hidden: int = 32) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(0))


def naive(x: torch.Tensor, block, choice: Choice) -> torch.Tensor:
    """Token by token, choice by choice, with dense weights."""

    def linear(module, row):
        spec = getattr(module, "spec", None)
        if spec is None:
            return row @ module.weight.t()
        row = fake_quantize_activations(row) if spec.activations == "int8" else row
        return row @ fake_quantize(module.weight, spec).t()

    rows = []
    for token in range(len(x)):
        total = torch.zeros(x.shape[1])
        for expert, gate in zip(choice.experts[token], choice.gates[token], strict=True):
            e = block.experts[int(expert)]
            hidden = block.activation(linear(e.gate_proj, x[token])) * linear(e.up_proj, x[token])
            total = total + gate * linear(e.down_proj, hidden)
        rows.append(total)
    return torch.stack(rows)


def forced(chosen: list[list[int]], experts: int) -> Choice:
    index = torch.tensor(chosen)
    gates = torch.rand(index.shape, generator=torch.Generator().manual_seed(1))
    return Choice(torch.zeros(len(index), experts), torch.full((len(index), experts), 1 / experts), index, gates)


ROUTINGS = {
    "ragged": [[0], [2], [2], [2], [1], [0], [3]],
    "empty experts": [[3], [1], [3], [1]],
    "all to one": [[2]] * 6,
    "two of four": [[0, 1], [3, 1], [1, 0], [2, 3], [1, 3]],
    "all four": [[3, 2, 1, 0], [0, 1, 2, 3]],
}


@pytest.mark.parametrize("bits", [FULL, TERNARY_FLOAT_INPUT], ids=["full precision", "ternary"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_route_equals_a_loop_over_tokens(bits, routing):
    block = one_block(bits)
    choice = forced(ROUTINGS[routing], 4)
    x = tokens(len(choice.experts))
    torch.testing.assert_close(
        route(x, block.experts, choice, block.activation), naive(x, block, choice), rtol=1e-4, atol=1e-5
    )


def test_route_with_int8_activations_is_the_loop_up_to_a_rounding_step():
    block = one_block(TERNARY)
    choice = forced(ROUTINGS["two of four"], 4)
    ours, loop = route(tokens(5), block.experts, choice, block.activation), naive(tokens(5), block, choice)
    assert (ours - loop).norm() / loop.norm() < 1e-2


def gradients(block, x, compute) -> list[torch.Tensor]:
    block.zero_grad()
    x = x.clone().requires_grad_()
    (compute(x) * torch.arange(1.0, x.shape[1] + 1)).sum().backward()
    held = [x, *block.experts.parameters()]
    return [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in held]


@pytest.mark.parametrize("routing", ["ragged", "two of four", "empty experts"])
def test_gradients_equal_those_of_the_loop(routing):
    block, choice = one_block(TERNARY_FLOAT_INPUT), forced(ROUTINGS[routing], 4)
    x = tokens(len(choice.experts))
    ours = gradients(block, x, lambda x: route(x, block.experts, choice, block.activation))
    loop = gradients(block, x, lambda x: naive(x, block, choice))
    for mine, theirs in zip(ours, loop, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_no_capacity_every_token_of_a_crowded_expert_is_processed():
    block = one_block()
    choice = forced([[1]] * 500, 4)
    output = route(tokens(500), block.experts, choice, block.activation)
    assert (output.abs().sum(-1) > 0).all()
    last = route(
        tokens(500)[-1:],
        block.experts,
        forced([[1]] * 500, 4).__class__(
            choice.logits[-1:], choice.probabilities[-1:], choice.experts[-1:], choice.gates[-1:]
        ),
        block.activation,
    )
    torch.testing.assert_close(output[-1:], last, rtol=1e-4, atol=1e-5)


def test_no_tokens_give_no_tokens():
    block = one_block(TERNARY, top_k=2)
    nothing = block.gate(torch.empty(0, 32))
    assert route(torch.empty(0, 32), block.experts, nothing, block.activation).shape == (0, 32)


def test_renumbering_experts_changes_nothing():
    block = one_block(TERNARY_FLOAT_INPUT, top_k=2)
    x = tokens(40)
    before = block(x)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        block.gate.weight.copy_(block.gate.weight[order])
    block.experts = Experts([block.experts[index] for index in order])
    torch.testing.assert_close(block(x), before, rtol=1e-5, atol=1e-5)


def test_tokens_in_another_order_give_the_same_rows():
    block = one_block(TERNARY_FLOAT_INPUT, top_k=2)
    x, order = tokens(40), torch.randperm(40, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(block(x[order]), block(x)[order], rtol=1e-5, atol=1e-5)


def test_twice_the_same_is_bit_identical_forward_and_backward():
    block = one_block(TERNARY, top_k=2)
    first, second = (gradients(block, tokens(40), block) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_unused_experts_get_no_gradient_at_all():
    block = one_block(TERNARY)
    route(tokens(6), block.experts, forced([[2]] * 6, 4), block.activation).sum().backward()
    assert block.experts[2].up_proj.weight.grad is not None
    assert all(p.grad is None for index in (0, 1, 3) for p in block.experts[index].parameters())


def test_permute_is_a_gather_with_the_gather_as_its_gradient():
    x = tokens(6).requires_grad_()
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    permute(x, order, order.argsort()).mul(torch.arange(6.0)[:, None]).sum().backward()
    expected = torch.zeros_like(x)
    expected[order] = torch.arange(6.0)[:, None].expand(6, 32)
    assert torch.equal(x.grad, expected)
