from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.formats import format_for
from mote_quant.qat.codes import find_codes, rounded_weight
from mote_quant.qat.fake import fake_quantize
from mote_quant.recipe.schema import BinaryBits, IntegerBits, TernaryBits
from mote_quant.steps.quantize.methods import rtn

SCALED = {"ternary": TernaryBits, "binary": BinaryBits}
integers = st.builds(
    IntegerBits,
    format=st.sampled_from(["int2", "int3", "int4", "int8"]),
    group_size=st.sampled_from([-1, 1, 4, 7]),
    symmetric=st.booleans(),
    clip=st.sampled_from(["none", "search"]),
    scale_dtype=st.sampled_from(["float16", "float32", "bfloat16"]),
    method=st.just("qat"),
)


def weights(rows: int = 7, columns: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def learned(format: str, granularity: str, **more):
    sizes = {"group_size": 4} if granularity == "group" else {}
    return SCALED[format](format=format, granularity=granularity, scales="learned", **sizes, **more)


@given(spec=integers, rows=st.integers(1, 4), columns=st.integers(1, 20), seed=st.integers(0, 99))
def test_integers_are_trained_through_what_rtn_packs(spec, rows, columns, seed):
    weight = weights(rows, columns, seed)
    by_rtn, trained = rtn(weight, spec), find_codes(weight, spec)
    assert torch.equal(trained.codes, by_rtn.codes)
    assert torch.equal(trained.scale, by_rtn.scale)
    stored = format_for(spec).compress(by_rtn)
    dense = format_for(spec).decompress(stored, (rows, columns), torch.float32)
    assert torch.equal(fake_quantize(weight, spec), dense)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("format", SCALED)
def test_learned_scales_are_those_that_are_packed(format, granularity):
    spec, weight = learned(format, granularity, scale_dtype="float16"), weights()
    shape = format_for(spec).layout((7, 11))["weight_scale"].shape
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.3
    codes = find_codes(weight, spec, scale)
    assert torch.equal(codes.scale, scale.half())
    dense = format_for(spec).decompress(format_for(spec).compress(codes), (7, 11), torch.float32)
    assert torch.equal(fake_quantize(weight, spec, learned=scale), dense)
    assert not torch.equal(dense, rounded_weight(weight, spec))


def test_a_learned_scale_stays_positive():
    spec = learned("ternary", "channel")
    codes = find_codes(weights(), spec, torch.full((7, 1), -3.0))
    assert (codes.scale > 0).all()


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("format", SCALED)
def test_the_gradient_of_a_learned_scale_weight_by_weight(format, granularity):
    """LSQ, equation 3, in plain loops; the weight's own gradient is the identity."""
    spec, weight, upstream = learned(format, granularity), weights().requires_grad_(), weights(seed=1)
    shape = format_for(spec).layout((7, 11))["weight_scale"].shape
    scale = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.5).requires_grad_()
    (fake_quantize(weight, spec, learned=scale) * upstream).sum().backward()
    expected, count = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    for row in range(7):
        for column in range(11):
            place = {"tensor": (0,), "channel": (row, 0), "group": (row, column // 4)}[granularity]
            ratio = (weight[row, column] / scale[place]).item()
            if format == "binary":
                slope = 1.0 if ratio >= 0 else -1.0
            else:
                slope = round(ratio) - ratio if abs(ratio) < 1 else (1.0 if ratio > 0 else -1.0)
            expected[place] += slope * upstream[row, column].item()
            count[place] += 1
    torch.testing.assert_close(scale.grad.double(), expected / count.sqrt(), rtol=1e-5, atol=1e-5)
    assert torch.equal(weight.grad, upstream)


@pytest.mark.parametrize("format", SCALED)
def test_the_gradient_of_a_learned_scale_leads_to_a_better_one(format):
    spec, weight = learned(format, "channel"), weights(4, 64)
    scale = torch.full((4, 1), 3.0, requires_grad=True)
    losses = []
    for _ in range(60):
        loss = (fake_quantize(weight, spec, learned=scale) - weight).square().mean()
        (gradient,) = torch.autograd.grad(loss, scale)
        with torch.no_grad():
            scale -= 0.3 * gradient * 64**0.5
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_strength_blends_what_is_learned_too():
    spec, weight, scale = learned("ternary", "tensor"), weights(), torch.tensor([0.7], requires_grad=True)
    full = fake_quantize(weight, spec, learned=scale)
    half = fake_quantize(weight, spec, 0.5, scale)
    torch.testing.assert_close(half, 0.5 * weight + 0.5 * full)
    (whole,) = torch.autograd.grad(full.square().sum(), scale, torch.tensor(1.0))
    assert whole.item() != 0
    assert fake_quantize(weight, spec, 0.0, scale) is weight
