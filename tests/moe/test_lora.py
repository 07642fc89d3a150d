"""Low-rank experts: what a block of them computes, against weights W + B A written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.hf.structure import is_transposed
from mote_quant.moe import MoteBlock, blocks
from mote_quant.moe.lora import LoraExpert
from mote_quant.moe.skip import skip_experts
from tests import pico
from tests.mixtures import mixture

FAMILIES = ["llama", "qwen2", "opt", "gpt2", "llava"]


def tokens(count: int = 9) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(0))


def trained(family: str, **settings) -> MoteBlock:
    """The first block of a model whose `lora_B` are not 0 any more."""
    block = next(iter(blocks(mixture(family=family, lora_rank=4, **settings)).values()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for expert in block.experts:
            for change in expert.children():
                change.lora_B.weight.copy_(torch.randn(change.lora_B.weight.shape, generator=generator) * 0.3)
    return block


def written_out(block: MoteBlock, x: Tensor, expert: LoraExpert | None) -> Tensor:
    """The dense block with W + B A in the place of every weight."""
    layout = block.layout

    def linear(theirs: str, ours: str, x: Tensor) -> Tensor:
        dense = block.shared_expert.get_submodule(theirs)
        weight = dense.weight.t() if is_transposed(dense) else dense.weight
        if expert is not None:
            change = expert.get_submodule(ours)
            weight = weight + change.lora_B.weight @ change.lora_A.weight
        return F.linear(x, weight, dense.bias)

    up = linear(layout.up, "up_proj", x)
    hidden = block.activation(up) if layout.gate is None else block.activation(linear(layout.gate, "gate_proj", x)) * up
    return linear(layout.down, "down_proj", hidden)


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_block_adds_what_its_experts_differ_by_from_the_dense_one(family, top_k):
    block, x = trained(family, top_k=top_k), tokens()
    choice, expected = block.gate(x), block.shared_expert(x)
    torch.testing.assert_close(written_out(block, x, None), expected, rtol=1e-5, atol=1e-6)
    dense = expected.clone()
    for token in range(len(x)):
        for number, gate in zip(choice.experts[token], choice.gates[token], strict=True):
            changed = written_out(block, x[token : token + 1], block.experts[int(number)])[0]
            expected[token] += gate * (changed - dense[token])
    assert (expected - dense).norm() > 0.1 * dense.norm()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block(x.view(3, 3, 32)).view(9, 32), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_weights_written_out():
    block, x = trained("llama", top_k=2), tokens()

    def plain(x: Tensor) -> Tensor:
        choice = block.gate(x)
        every = torch.stack([written_out(block, x, expert) for expert in block.experts], dim=1)
        chosen = every.gather(1, choice.experts.unsqueeze(-1).expand(-1, -1, 32))
        dense = written_out(block, x, None)
        return dense + (choice.gates.unsqueeze(-1) * (chosen - dense.unsqueeze(1))).sum(1)

    def gradients(compute) -> list[Tensor]:
        block.zero_grad()
        (compute(x) * torch.arange(1.0, 33.0)).sum().backward()
        return [parameter.grad.clone() for parameter in block.parameters()]

    for ours, theirs in zip(gradients(block), gradients(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_dense_weights_are_held_once():
    block = trained("llama")
    dense = sum(parameter.numel() for parameter in block.shared_expert.parameters())
    routed = sum(parameter.numel() for parameter in block.experts.parameters())
    assert routed == 4 * 3 * 4 * (32 + 48)
    assert sum(p.numel() for p in block.parameters()) == dense + routed + block.gate.weight.numel()


def test_no_tokens_give_no_tokens():
    assert trained("llama")(torch.empty(0, 32)).shape == (0, 32)


def test_spared_tokens_get_the_shared_expert_alone():
    model = mixture(lora_rank=2)
    ids = {"input_ids": pico.inputs(model)["input_ids"]}
    skip_experts(model, [ids], [], 0.5)
    for block in blocks(model).values():
        for change in [change for expert in block.experts for change in expert.children()]:
            nn.init.normal_(change.lora_B.weight)
    block, x = next(iter(blocks(model).values())), tokens(40)
    assert block.layout.skip_below > 0
    with torch.no_grad():
        spared = block.gate(x).probabilities.amax(-1) < block.layout.skip_below
        moved = (block(x) - block.shared_expert(x)).abs().amax(-1)
    assert spared.any()
    assert (moved[spared] < 1e-5).all()
    assert (moved[~spared] > 1e-2).all()


@torch.no_grad()
def test_a_visit_shows_an_expert_the_tokens():
    block, seen = trained("llama"), []
    expert = block.experts[2]
    expert.up_proj.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    change = block.visit(2, tokens())
    assert torch.equal(seen[0], tokens())
    expert.down_proj.lora_B.weight.mul_(2)
    after = block.visit(2, tokens())
    torch.testing.assert_close(after[:, 48:], 2 * change[:, 48:])
    assert torch.equal(after[:, :48], change[:, :48])
