from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mote_quant.kernels import experts as routed
from mote_quant.kernels import triton
from mote_quant.recipe import TernaryBits
from tests.kernels.triton_kernels.weights import experts_on, generator, packed_experts, packed_ternary

HIDDEN, INNER, EXPERTS = 37, 26, 5


def spec_of(packing="2bit", activations="int8", granularity="tensor", **more) -> TernaryBits:
    return TernaryBits(format="ternary", packing=packing, activations=activations, granularity=granularity, **more)


def some_experts(spec, gated=True, biased=False, activation="silu", hidden=HIDDEN, inner=INNER, count=EXPERTS):
    return packed_experts(spec, count, hidden, inner, gated, biased, activation)


def routing(tokens, top_k, seed=0):
    """Distinct experts for each token, never expert 1."""
    made = generator(seed)
    others = torch.tensor([0, 2, 3, 4])
    chosen = torch.stack([others[torch.randperm(4, generator=made)[:top_k]] for _ in range(tokens)])
    return chosen, torch.rand(tokens, top_k, generator=made)


def run(device, x, chosen, gates, packed):
    moved = experts_on(device, packed)
    assert triton.supports_experts(x.to(device), moved)
    return triton.experts(x.to(device), chosen.to(device), gates.to(device), moved).cpu()


def close(got, expected, share):
    # A value between two int8 codes may fall to either side.
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=share * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("tokens", "top_k", "packing", "granularity", "gated", "biased"),
    [
        (1, 1, "2bit", "channel", True, False),
        (2, 2, "base3", "tensor", True, True),
        (2, 1, "2bit", "tensor", False, True),
        (21, 1, "2bit", "tensor", True, True),
        (12, 3, "base3", "channel", True, False),
        (18, 1, "base3", "tensor", False, False),
    ],
)
def test_int8_experts_agree_with_the_reference(tokens, top_k, packing, granularity, gated, biased, device):
    packed = some_experts(spec_of(packing, granularity=granularity), gated, biased)
    x = torch.randn(tokens, HIDDEN, generator=generator(1))
    chosen, gates = routing(tokens, top_k)
    close(run(device, x, chosen, gates, packed), routed.route(x, chosen, gates, packed), 5e-3)


@pytest.mark.parametrize(
    ("activation", "tokens"), [*((activation, 2) for activation in sorted(routed.ACTIVATIONS)), ("silu", 18)]
)
def test_every_activation_agrees_with_the_reference(activation, tokens, device):
    packed = some_experts(spec_of(activations="none"), biased=True, activation=activation)
    x = torch.randn(tokens, HIDDEN, generator=generator(1))
    chosen, gates = routing(tokens, 1)
    close(run(device, x, chosen, gates, packed), routed.route(x, chosen, gates, packed), 1e-5)


@pytest.mark.parametrize(
    ("activations", "tokens", "dtype"),
    [("int8", 2, torch.bfloat16), ("none", 2, torch.float16), ("int8", 9, torch.float16), ("none", 9, torch.bfloat16)],
)
def test_small_floats_agree_as_far_as_they_go(activations, tokens, dtype, device):
    packed = some_experts(spec_of("base3", activations))
    x = torch.randn(tokens, HIDDEN, generator=generator(1)).to(dtype)
    chosen, gates = routing(tokens, 2)
    got = run(device, x, chosen, gates, packed)
    assert got.dtype == dtype
    close(got, routed.route(x.float(), chosen, gates, packed), 2e-2)


@pytest.mark.parametrize("tokens", [2, 9])
def test_rows_of_whole_words_are_read_as_words(tokens, device):
    packed = some_experts(spec_of(), hidden=64, inner=48)
    x = torch.randn(tokens, 64, generator=generator(1))
    chosen, gates = routing(tokens, 2)
    close(run(device, x, chosen, gates, packed), routed.route(x, chosen, gates, packed), 5e-3)


@pytest.mark.parametrize("tokens", [2, 9])
def test_a_choice_that_is_no_expert_counts_for_nothing(tokens, device):
    packed = some_experts(spec_of())
    x = torch.randn(tokens, HIDDEN, generator=generator(1))
    chosen, gates = routing(tokens, 2)
    chosen[0] = torch.tensor([-1, EXPERTS])
    chosen[1, 0] = -1
    got = run(device, x, chosen, gates, packed)
    assert not got[0].any()
    close(got, routed.route(x, chosen, gates, packed), 5e-3)


@pytest.mark.parametrize("tokens", [2, 9])
def test_what_is_not_a_number_stays_so_in_its_token_alone(tokens, device):
    x = torch.randn(tokens, HIDDEN, generator=generator(1))
    x[1, 4] = torch.nan
    got = run(device, x, *routing(tokens, 2), some_experts(spec_of()))
    assert got[1].isnan().all()
    assert got[torch.arange(tokens) != 1].isfinite().all()


def test_one_expert_may_have_all_tokens(device):
    packed = some_experts(spec_of())
    x = torch.randn(20, HIDDEN, generator=generator(1))
    chosen, gates = torch.full((20, 1), EXPERTS - 1), torch.ones(20, 1)
    close(run(device, x, chosen, gates, packed), routed.route(x, chosen, gates, packed), 5e-3)


@pytest.mark.parametrize("tokens", [2, 9])
def test_tokens_need_not_lie_one_after_another(tokens, device):
    packed = some_experts(spec_of())
    x = torch.randn(HIDDEN, tokens, generator=generator(1)).T
    chosen, gates = routing(tokens, 2)
    assert torch.equal(
        run(device, x, chosen.T.contiguous().T, gates, packed), run(device, x.contiguous(), chosen, gates, packed)
    )


def test_there_may_be_one_expert_only(device):
    packed = some_experts(spec_of(), count=1)
    x = torch.randn(17, HIDDEN, generator=generator(1))
    chosen, gates = torch.zeros(17, 1, dtype=torch.int64), torch.ones(17, 1)
    close(run(device, x, chosen, gates, packed), routed.route(x, chosen, gates, packed), 5e-3)


def test_other_experts_are_left_to_the_reference(device):
    x = torch.ones(2, HIDDEN, device=device)
    packed = experts_on(device, some_experts(spec_of()))
    assert not triton.supports_experts(x.double(), packed)
    assert not triton.supports_experts(x[:0], packed)
    assert not triton.supports_experts(x, replace(packed, activation="celu"))
    grouped = packed_ternary(spec_of(granularity="group", group_size=32), (INNER, HIDDEN)).format
    assert not triton.supports_experts(x, replace(packed, format=grouped))
