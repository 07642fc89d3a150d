from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mote_quant.moe.losses import attach, balance_loss, expert_load, z_loss
from mote_quant.moe.pull import Pulls
from mote_quant.moe.router import Choice
from tests.mixtures import one_block

EXPERTS = 4


def choice(logits: torch.Tensor, top_k: int = 1, experts: torch.Tensor | None = None) -> Choice:
    probabilities = logits.softmax(-1)
    gates, found = probabilities.topk(top_k)
    return Choice(logits, probabilities, found if experts is None else experts, gates)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_uniform_routing_has_balance_one_for_any_top_k(top_k):
    experts = torch.stack([torch.arange(top_k) + token for token in range(12)]) % EXPERTS
    even = choice(torch.zeros(12, EXPERTS), top_k, experts)
    load = expert_load(even)
    torch.testing.assert_close(load, torch.full((EXPERTS,), 1 / EXPERTS))
    assert balance_loss(even, load).item() == pytest.approx(1.0)


def test_all_to_one_routing_has_balance_e():
    worst = choice(torch.tensor([[30.0, 0.0, 0.0, 0.0]]).expand(9, -1))
    assert expert_load(worst).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert balance_loss(worst, expert_load(worst)).item() == pytest.approx(EXPERTS)


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    log2 = torch.tensor(2.0).log()
    assert z_loss(choice(logits)).item() == pytest.approx(((log2**2 + (3 + log2) ** 2) / 2).item())


def test_attach_changes_no_value_and_passes_gradient_one_whatever_the_loss():
    for factor in (1.0, 1000.0):
        output, weight = torch.ones(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        attached = attach(output, weight * 5, Pulls())
        assert torch.equal(attached, output)
        (attached.sum() * factor).backward()
        assert weight.grad.item() == 5.0
        assert output.grad.tolist() == [factor] * 3


def test_what_attach_returns_may_be_added_to_in_place():
    output, weight = torch.ones(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    attached = attach(output * 1, weight * 5, Pulls())
    attached += 1
    attached.sum().backward()
    assert weight.grad.item() == 5.0
    assert output.tolist() == [1.0] * 3


def tokens() -> torch.Tensor:
    return torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))


def router_gradient(top_k: int, balance: float, z: float, by_hand: bool) -> torch.Tensor:
    """The router's gradient of a plain loop's loss, with router losses attached by us or added by hand."""
    block = one_block(top_k=top_k).train()
    block.balance_loss, block.z_loss = (0.0, 0.0) if by_hand else (balance, z)
    loss = block(tokens()).square().mean()
    if by_hand:
        logits = tokens().flatten(0, 1) @ block.gate.weight.t()
        probabilities = logits.softmax(-1)
        chosen = F.one_hot(probabilities.topk(top_k).indices, EXPERTS).float().sum(1) / top_k
        loss = loss + balance * EXPERTS * (chosen.mean(0).detach() * probabilities.mean(0)).sum()
        loss = loss + z * logits.exp().sum(-1).log().square().mean()
    loss.backward()
    return block.gate.weight.grad


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("balance", "z"), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.2)])
def test_attached_losses_equal_losses_added_by_hand(top_k, balance, z):
    ours = router_gradient(top_k, balance, z, by_hand=False)
    torch.testing.assert_close(ours, router_gradient(top_k, balance, z, by_hand=True), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours, router_gradient(top_k, 0.0, 0.0, by_hand=False), rtol=1e-2)


def graph_of(block) -> str:
    x = tokens().requires_grad_()
    return block(x).grad_fn.name()


def test_not_attached_in_eval_nor_when_the_router_is_frozen_nor_without_weight():
    block = one_block().train()
    assert "Attach" not in graph_of(block)
    block.balance_loss = 1.0
    assert "Attach" in graph_of(block)
    assert "Attach" not in graph_of(block.eval())
    block.train().gate.weight.requires_grad_(False)
    x = tokens()
    block(x).sum().backward()
    assert block.gate.weight.grad is None


def test_a_frozen_router_under_trained_inputs_is_not_pulled_towards_balance():
    """The losses are about the router: where it is frozen they must not move what lies below."""
    block = one_block().train()
    block.gate.weight.requires_grad_(False)
    gradients = []
    for weight in (0.0, 10.0):
        block.balance_loss = weight
        x = tokens().requires_grad_()
        block(x).square().mean().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_routing_figures_are_kept_without_graph():
    block = one_block().train()
    block(tokens())
    figures = block.routing
    assert figures.load.sum().item() == pytest.approx(1.0)
    assert 0 < figures.entropy.item() <= torch.tensor(float(EXPERTS)).log().item() + 1e-6
    assert not figures.balance.requires_grad
