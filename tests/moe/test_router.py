from __future__ import annotations

import pytest
import torch

from mote_quant.moe.router import Router, keeping_float32
from tests.mixtures import one_block


def router(**settings) -> Router:
    return one_block(**settings).gate


def tokens(count: int = 12, hidden: int = 32) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_raw_gates_are_the_largest_softmax_probabilities(top_k):
    gate = router(top_k=top_k)
    choice = gate(tokens())
    probabilities = torch.softmax(tokens() @ gate.weight.t(), dim=-1)
    torch.testing.assert_close(choice.probabilities, probabilities)
    torch.testing.assert_close(choice.gates, probabilities.sort(dim=-1, descending=True).values[:, :top_k])
    assert torch.equal(choice.gates, choice.probabilities.gather(1, choice.experts))


def test_normalized_gates_sum_to_one_and_a_lone_one_is_exactly_one():
    pair = router(top_k=2, normalize_gates=True)(tokens())
    torch.testing.assert_close(pair.gates.sum(-1), torch.ones(12))
    assert torch.equal(router(normalize_gates=True)(tokens()).gates, torch.ones(12, 1))


@pytest.mark.parametrize("combine", ["additive", "convex", "zero_init"])
def test_the_gates_alone_give_the_router_a_gradient_with_top_1(combine):
    gate = router(combine=combine)
    (gate(tokens()).gates * torch.arange(12.0)[:, None]).sum().backward()
    assert gate.weight.grad.abs().max() > 0


def test_at_scale_zero_the_router_learns_as_if_the_scale_were_one():
    gate, plain = router(combine="zero_init"), router(combine="additive")
    upstream = torch.arange(12.0)[:, None]
    assert not gate(tokens()).gates.any()
    for made in (gate, plain):
        (made(tokens()).gates * upstream).sum().backward()
    torch.testing.assert_close(gate.weight.grad, plain.weight.grad)
    expected = (plain(tokens()).gates * upstream).sum()
    torch.testing.assert_close(gate.scale.grad, expected.detach())


def test_once_the_scale_has_moved_the_gradient_is_the_true_one():
    gate, plain = router(combine="zero_init"), router(combine="additive")
    with torch.no_grad():
        gate.scale.fill_(0.25)
    for made in (gate, plain):
        made(tokens()).gates.square().sum().backward()
    torch.testing.assert_close(gate.weight.grad, plain.weight.grad * 0.25**2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_model_keeps_its_router_in_float32(dtype):
    gate = router(combine="zero_init").to(dtype)
    assert gate.weight.dtype == gate.scale.dtype == torch.float32
    assert gate(tokens().to(dtype)).probabilities.dtype == torch.float32


def test_moves_and_longer_types_go_through():
    assert router().to("meta").weight.is_meta
    assert router().double().weight.dtype == torch.float64
    assert keeping_float32(lambda t: t.half())(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float16


def test_autocast_does_not_reach_the_router():
    gate = router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gate(tokens())
    assert torch.equal(inside.logits, gate(tokens()).logits)
