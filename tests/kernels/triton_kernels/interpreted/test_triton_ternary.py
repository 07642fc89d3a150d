from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mote_quant.formats import Codes
from mote_quant.kernels import reference, triton
from mote_quant.recipe import TernaryBits
from mote_quant.ternary.activation import quantize_activations
from tests.kernels.triton_kernels.weights import generator, packed_ternary, weight_on

DEVICE = torch.device("cpu" if triton.interpreted() else "cuda")


def spec_of(packing="2bit", activations="int8", granularity="tensor", **more) -> TernaryBits:
    return TernaryBits(format="ternary", packing=packing, activations=activations, granularity=granularity, **more)


def multiply(x, weight, bias=None):
    assert triton.supports(x.to(DEVICE), weight_on(DEVICE, weight))
    return triton.matmul(x.to(DEVICE), weight_on(DEVICE, weight), None if bias is None else bias.to(DEVICE)).cpu()


def exactly(x, weight):
    """Integer sums, scaled in the order in which kernels do."""
    codes, scales = quantize_activations(x)
    sums = codes.long() @ weight.format.codes(weight.tensors, weight.shape).long().T
    return sums.float() * scales * weight.tensors["weight_scale"].float().view(1, -1)


@settings(max_examples=12)
@given(
    tokens=st.integers(1, 9),
    rows=st.integers(1, 40),
    columns=st.integers(1, 200),
    packing=st.sampled_from(["2bit", "base3"]),
    granularity=st.sampled_from(["tensor", "channel"]),
)
def test_int8_products_are_exact(tokens, rows, columns, packing, granularity):
    weight = packed_ternary(spec_of(packing, granularity=granularity), (rows, columns), seed=columns)
    x = torch.randn(tokens, columns, generator=generator(rows))
    assert torch.equal(multiply(x, weight), exactly(x, weight))


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize(("packing", "columns"), [("2bit", 512), ("base3", 640), ("2bit", 515)])
def test_the_largest_sums_are_exact(tokens, packing, columns):
    """All codes and activations at their limits; widths that are read by words and by bytes."""
    spec = spec_of(packing)
    weight = packed_ternary(spec, (5, columns))
    codes = torch.ones(5, columns, dtype=torch.int8)
    codes[1::2] = -1
    packed = weight.format.compress(Codes(codes, weight.tensors["weight_scale"]))
    weight = type(weight)(packed, weight.shape, weight.format)
    x = torch.full((tokens, columns), 3.0)
    assert torch.equal(multiply(x, weight), exactly(x, weight))


@pytest.mark.parametrize(("tokens", "dtype"), [(2, torch.bfloat16), (7, torch.bfloat16), (2, torch.float16)])
@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize("packing", ["2bit", "base3"])
def test_products_agree_with_the_reference(packing, activations, tokens, dtype):
    weight = packed_ternary(spec_of(packing, activations, "channel", scale_dtype="float16"), (33, 70))
    x = torch.randn(tokens, 70, generator=generator(1)).to(dtype)
    bias = torch.randn(33, generator=generator(2)).to(dtype)
    got, expected = multiply(x, weight, bias), reference.matmul(x.float(), weight, bias.float())
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("packing", ["2bit", "base3"])
@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_groups_have_scales_of_their_own(packing, activations, tokens):
    weight = packed_ternary(spec_of(packing, activations, "group", group_size=320), (9, 700))
    x = torch.randn(tokens, 700, generator=generator(1))
    torch.testing.assert_close(multiply(x, weight), reference.matmul(x, weight, None), rtol=1e-5, atol=1e-4)


def test_leading_dimensions_are_kept():
    weight = packed_ternary(spec_of(), (6, 20))
    x = torch.randn(2, 3, 20, generator=generator(0))
    assert torch.equal(multiply(x, weight), multiply(x.view(6, 20), weight).view(2, 3, 6))


@pytest.mark.parametrize("tokens", [2, 6])
@pytest.mark.parametrize("activations", ["int8", "none"])
def test_what_is_not_a_number_stays_so_in_its_token_alone(tokens, activations):
    x = torch.randn(tokens, 40, generator=generator(0))
    x[1, 7] = torch.nan
    got = multiply(x, packed_ternary(spec_of("base3", activations), (5, 40)))
    assert got[1].isnan().all()
    assert got[torch.arange(tokens) != 1].isfinite().all()


def test_bytes_that_start_anywhere_are_read():
    weight = packed_ternary(spec_of(), (4, 64))
    stored = weight.tensors["weight"]
    moved = torch.empty(stored.numel() + 1, dtype=torch.uint8)[1:].view_as(stored).copy_(stored)
    shifted = type(weight)({**weight.tensors, "weight": moved}, weight.shape, weight.format)
    x = torch.randn(1, 64, generator=generator(0))
    assert torch.equal(multiply(x, shifted), multiply(x, weight))


@pytest.mark.parametrize(
    ("shape", "x"),
    [((4, 8), torch.ones(0, 8)), ((4, 8), torch.ones(1, 8, dtype=torch.float64)), ((0, 8), torch.ones(1, 8))],
)
def test_other_input_is_left_to_the_reference(shape, x):
    assert not triton.supports(x.to(DEVICE), weight_on(DEVICE, packed_ternary(spec_of(), shape)))


def test_groups_that_split_a_byte_are_left_to_the_reference():
    weight = packed_ternary(spec_of(granularity="group", group_size=6), (4, 24))
    assert not triton.supports(torch.ones(1, 24, device=DEVICE), weight_on(DEVICE, weight))
