from __future__ import annotations

import copy

import pytest
import torch

from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear
from tests.mixtures import TERNARY, one_block
from tests.rounding import assert_same_to_rounding


def tokens(*shape: int, hidden: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)


@torch.no_grad()
def parts(block, x):
    """Shared output, gates and routed sum, each computed apart from the block's own forward."""
    choice = block.gate(x)
    routed = torch.zeros_like(x)
    for token in range(len(x)):
        for expert, gate in zip(choice.experts[token], choice.gates[token], strict=True):
            e = block.experts[int(expert)]
            hidden = block.activation(e.gate_proj(x[token : token + 1])) * e.up_proj(x[token : token + 1])
            routed[token] += gate * e.down_proj(hidden)[0]
    return block.shared_expert(x) if block.layout.shared else None, routed


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("combine", ["additive", "convex", "zero_init"])
def test_combines_by_hand(combine, top_k):
    more = {"mix": 0.3} if combine == "convex" else {}
    block = one_block(combine=combine, top_k=top_k, **more)
    if combine == "zero_init":
        with torch.no_grad():
            block.gate.scale.fill_(0.7)
    x = tokens(9)
    shared, routed = parts(block, x)
    expected = {"additive": shared + routed, "convex": 0.7 * shared + 0.3 * routed, "zero_init": shared + routed}[
        combine
    ]
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    if combine == "zero_init":
        raw = block.gate(x).probabilities.topk(top_k).values
        torch.testing.assert_close(block.gate(x).gates, raw * 0.7)


@pytest.mark.parametrize("top_k", [1, 2])
def test_without_shared_expert_the_routed_sum_is_the_output(top_k):
    block = one_block(shared="none", top_k=top_k)
    assert not hasattr(block, "shared_expert")
    _, routed = parts(block, tokens(9))
    torch.testing.assert_close(block(tokens(9)), routed, rtol=1e-4, atol=1e-5)


def test_convex_with_equal_experts_is_the_dense_block():
    block = one_block(combine="convex", noise=0.0)
    x = tokens(9)
    torch.testing.assert_close(block(x), block.shared_expert(x), rtol=1e-4, atol=1e-5)


def test_zero_init_is_the_dense_block_exactly():
    block = one_block(TERNARY, combine="zero_init")
    x = tokens(3, 7)
    assert torch.equal(block(x), block.shared_expert(x))
    assert torch.equal(block.train()(x), block.shared_expert(x))


def test_any_leading_axes_and_no_tokens_at_all():
    block = one_block(TERNARY, top_k=2).train()
    block.balance_loss = block.z_loss = 1.0
    x = tokens(2, 3, 5)
    torch.testing.assert_close(block(x), block(x.flatten(0, 2)).view_as(x))
    nothing = block(torch.empty(0, 4, 32, requires_grad=True))
    assert nothing.shape == (0, 4, 32)
    nothing.sum().backward()


FORMATS = {
    "tensor": {},
    "base3": {"packing": "base3", "scale_dtype": "float16"},
    "channel": {"granularity": "channel"},
    "group": {"granularity": "group", "group_size": 8, "activations": "none"},
}


def packed(block, dtype):
    """The block with every ternary layer in the place of its packed form."""
    made = copy.deepcopy(block)
    for name, module in list(made.named_modules()):
        if isinstance(module, QatLinear):
            replace_module(made, name, PackedLinear.pack(module.spec, module.codes(), module.bias, dtype))
    return made


def routed_to(block, kind: str):
    """Force the routing: the first feature is made constant 1, and the router looks at nothing else."""
    if kind == "ragged":
        return block
    with torch.no_grad():
        block.gate.weight.zero_()
        favourites = {"all to one": 1, "empty": max(1, len(block.experts) // 2)}[kind]
        block.gate.weight[-favourites:, 0] = 20.0
        if kind == "empty":
            block.gate.weight[-favourites:, 1:] = 0.3 * torch.randn(
                favourites, 31, generator=torch.Generator().manual_seed(5)
            )
    return block


@pytest.mark.parametrize("kind", ["ragged", "empty", "all to one"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("experts", [1, 4, 16])
def test_qat_forward_equals_packed_forward_whatever_the_routing(experts, top_k, kind):
    if top_k > experts:
        pytest.skip("fewer experts than choices")
    block = routed_to(one_block(TERNARY, experts=experts, top_k=top_k), kind)
    x = tokens(25)
    x[:, 0] = 1.0
    with torch.no_grad():
        latent, stored = block(x), packed(block, torch.float32)(x)
    load = block.routing.load
    if kind == "all to one" and top_k == 1:
        assert load.tolist() == [0.0] * (experts - 1) + [1.0]
    if kind == "empty" and top_k <= max(1, experts // 2):
        assert not load[: experts - max(1, experts // 2)].any()
    assert_same_to_rounding(stored, latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMATS)
def test_qat_forward_equals_packed_forward_in_every_format(form, dtype):
    block = one_block({"routed": {"format": "ternary"} | FORMATS[form]}, hidden=38, ffn=47, top_k=2).to(dtype)
    x = tokens(13, hidden=38, dtype=dtype)
    with torch.no_grad():
        assert_same_to_rounding(packed(block, dtype)(x), block(x))
        assert block(x).dtype == dtype


@pytest.mark.parametrize("combine", ["additive", "convex", "zero_init"])
def test_the_language_loss_alone_reaches_router_and_experts_with_top_1(combine):
    block = one_block(TERNARY, combine=combine).train()
    block(tokens(30)).square().mean().backward()
    assert block.gate.weight.grad.abs().max() > 0
    if combine == "zero_init":
        assert block.gate.scale.grad != 0
    else:
        assert all(p.grad.abs().max() > 0 for p in block.experts.parameters())


def test_additive_router_gradient_by_finite_differences():
    block = one_block(top_k=2).train()
    x, upstream = tokens(12), torch.randn(12, 32, generator=torch.Generator().manual_seed(9)).double()

    def loss() -> torch.Tensor:
        return (block(x).double() * upstream).sum()

    loss().backward()
    weight, step = block.gate.weight, 1e-3
    numeric = torch.zeros(4, 4)
    with torch.no_grad():
        for row in range(4):
            for column in range(4):
                kept = weight[row, column].item()
                weight[row, column] = kept + step
                up, above = loss(), block.gate(x).experts
                weight[row, column] = kept - step
                down, below = loss(), block.gate(x).experts
                weight[row, column] = kept
                assert torch.equal(above, below)  # no token changed its experts, or the difference means nothing
                numeric[row, column] = (up - down) / (2 * step)
    torch.testing.assert_close(weight.grad[:, :4], numeric, rtol=2e-2, atol=2e-2)


def test_deterministic_to_the_bit():
    block = one_block(TERNARY, experts=16, top_k=2)
    assert torch.equal(block(tokens(50)), block(tokens(50)))
