from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mote_quant.kernels import reference, triton
from mote_quant.recipe import IntegerBits
from tests.kernels.triton_kernels.weights import generator, packed_integer, weight_on

DEVICE = torch.device("cpu" if triton.interpreted() else "cuda")
KINDS = {
    "symmetric": {},
    "zero points": {"symmetric": False},
    "float zero points": {"symmetric": False, "method": "hqq"},
    "input scales": {"method": "awq"},
}


def check(spec, tokens, shape, dtype=torch.float32):
    weight = packed_integer(spec, shape, seed=tokens)
    x = torch.randn(tokens, shape[1], generator=generator(shape[0])).to(dtype)
    bias = torch.randn(shape[0], generator=generator(2)).to(dtype)
    assert triton.supports(x.to(DEVICE), weight_on(DEVICE, weight))
    got = triton.matmul(x.to(DEVICE), weight_on(DEVICE, weight), bias.to(DEVICE)).cpu()
    expected = reference.matmul(x.float(), weight, bias.float())
    assert got.dtype == dtype
    # Sums of float32, and what the type of x makes of codes between integers and of the result.
    error = 32 * torch.finfo(torch.float32).eps + 3 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=float(expected.abs().max()) * error)


@settings(max_examples=10)
@given(
    tokens=st.integers(1, 7),
    rows=st.integers(1, 40),
    columns=st.integers(1, 300),
    bits=st.sampled_from(["int8", "int4"]),
    group=st.sampled_from([-1, 32, 96, 128]),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_products_agree_with_the_reference(tokens, rows, columns, bits, group, kind):
    check(IntegerBits(format=bits, group_size=group, **KINDS[kind]), tokens, (rows, columns))


@pytest.mark.parametrize(("tokens", "dtype"), [(1, torch.bfloat16), (1, torch.float16), (6, torch.bfloat16)])
@pytest.mark.parametrize("bits", ["int8", "int4", "int2"])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "float zero points"])
def test_small_floats_agree_as_far_as_they_go(bits, kind, tokens, dtype):
    check(IntegerBits(format=bits, group_size=64, **KINDS[kind]), tokens, (17, 200), dtype)


def test_what_is_not_a_number_stays_so_in_its_token_alone():
    x = torch.randn(6, 40, generator=generator(0), dtype=torch.float32)
    x[1, 7] = torch.nan
    weight = packed_integer(IntegerBits(format="int4"), (5, 40))
    got = triton.matmul(x.to(DEVICE), weight_on(DEVICE, weight), None).cpu()
    assert got[1].isnan().all()
    assert got[torch.arange(6) != 1].isfinite().all()


@pytest.mark.parametrize(("bits", "group"), [("int3", 32), ("int5", -1), ("int6", 64), ("int4", 8), ("int4", 33)])
def test_other_integers_are_left_to_the_reference(bits, group):
    weight = packed_integer(IntegerBits(format=bits, group_size=group), (4, 66))
    assert not triton.supports(torch.ones(1, 66, device=DEVICE), weight_on(DEVICE, weight))
