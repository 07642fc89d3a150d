from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import BadWeightsError, FormatError
from mote_quant.formats import dtype_of, format_for
from mote_quant.formats.integer import BITS, code_range
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import METHODS, NEEDS, rtn

specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 1, 3, 8, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


def random_weight(rows, columns, seed=0, size=1.0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


def naive_symmetric(weight, bits, group_size, dtype):
    """Element by element, in Python floats."""
    codes = [[0] * weight.shape[1] for _ in weight]
    scales = []
    for row, values in enumerate(weight.tolist()):
        width = len(values) if group_size == -1 else group_size
        scales.append([])
        for start in range(0, len(values), width):
            largest = max(abs(value) for value in values[start : start + width])
            scale = torch.tensor(2 * largest / (2**bits - 1), dtype=torch.float32).to(dtype).item()
            scales[-1].append(scale)
            for column in range(start, min(start + width, len(values))):
                ratio = torch.tensor(values[column]).div(scale).item()
                codes[row][column] = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(ratio)))
    return torch.tensor(codes, dtype=torch.int16), torch.tensor(scales).to(dtype)


@given(
    name=st.sampled_from(sorted(BITS)),
    group_size=st.sampled_from([-1, 1, 4, 7]),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_symmetric_equals_a_naive_implementation(name, group_size, scale_dtype, rows, columns, seed):
    spec = IntegerBits(format=name, group_size=group_size, scale_dtype=scale_dtype)
    weight = random_weight(rows, columns, seed)
    found = rtn(weight, spec)
    codes, scale = naive_symmetric(weight, BITS[name], group_size, dtype_of(scale_dtype))
    assert found.zero is None
    assert torch.equal(found.scale, scale)
    assert torch.equal(found.codes, codes)


@given(spec=specs, rows=st.integers(0, 4), columns=st.integers(0, 20), seed=st.integers(0, 99))
def test_codes_fit_the_format_and_the_nearest_grid_point_is_taken(spec, rows, columns, seed):
    weight = random_weight(rows, columns, seed)
    found = rtn(weight, spec)
    form = format_for(spec)
    stored = form.compress(found)
    weight_again = form.decompress(stored, (rows, columns), torch.float32)

    group = torch.arange(columns) // (columns or 1 if spec.group_size == -1 else spec.group_size)
    scale = found.scale.float()[:, group]
    zero = 0 if found.zero is None else found.zero.float()[:, group]
    levels = torch.arange(code_range(spec)[0], code_range(spec)[1] + 1.0).view(-1, 1, 1)
    best = (((levels - zero) * scale) - weight).abs().amin(0)
    assert torch.allclose((weight_again - weight).abs(), best, rtol=1e-4, atol=1e-6)


def test_the_largest_weights_stay_within_half_a_step():
    spec = IntegerBits(format="int4", symmetric=False, scale_dtype="float32")
    weight = torch.tensor([[-1.0, 0.0, 2.0]])
    found = rtn(weight, spec)
    assert found.zero.tolist() == [[5]]
    assert found.codes.tolist() == [[0, 5, 15]]
    assert math.isclose(found.scale.item(), 0.2, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("symmetric", "weights", "codes"),
    [
        (True, [7.5, 0.5, 1.5, -0.5, -1.5], [7, 0, 2, 0, -2]),
        (False, [-1.0, 14.0, -0.5, 0.5, 1.5, 2.5], [0, 15, 0, 2, 2, 4]),
    ],
)
def test_half_way_between_two_codes_the_even_one_is_taken(symmetric, weights, codes):
    spec = IntegerBits(format="int4", symmetric=symmetric, scale_dtype="float32")
    found = rtn(torch.tensor([weights]), spec)
    assert found.scale.item() == 1.0
    assert found.codes.tolist() == [codes]


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
def test_a_group_of_one_sign_keeps_zero_on_the_grid(values):
    spec = IntegerBits(format="int4", symmetric=False, scale_dtype="float32")
    found = rtn(torch.tensor([values]), spec)
    assert found.zero.item() == (0 if values[0] > 0 else 15)
    assert ((found.codes - found.zero) * found.scale - torch.tensor([values])).abs().max() <= found.scale.item() / 2


@given(spec=specs)
def test_groups_of_zeros_have_a_safe_scale_and_stay_zero(spec):
    found = rtn(torch.zeros(2, 5), spec)
    assert torch.equal(found.scale, torch.ones_like(found.scale))
    stored = format_for(spec).compress(found)
    assert torch.equal(format_for(spec).decompress(stored, (2, 5), torch.float32), torch.zeros(2, 5))


@given(spec=specs, exponent=st.integers(-40, -4))
def test_scales_never_round_to_zero(spec, exponent):
    found = rtn(random_weight(2, 6, size=10.0**exponent), spec)
    assert bool((found.scale > 0).all())
    assert bool(found.scale.isfinite().all())


def test_a_scale_beyond_float16_is_refused_and_fits_bfloat16():
    weight = random_weight(2, 6, size=1e6)
    with pytest.raises(FormatError, match=r"layer\.weight.*does not fit float16; take scale_dtype: bfloat16"):
        rtn(weight, IntegerBits(format="int4"), name="layer.weight")
    assert bool(rtn(weight, IntegerBits(format="int4", scale_dtype="bfloat16")).scale.isfinite().all())


def test_weights_too_large_for_float32_scales_are_refused():
    with pytest.raises(FormatError, match="the weights are too large"):
        rtn(torch.tensor([[3e38, -3e38]]), IntegerBits(format="int4", scale_dtype="float32", symmetric=False))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(method, value):
    weight = random_weight(3, 4)
    weight[1, 2] = value
    with pytest.raises(BadWeightsError, match=r"layer\.weight holds NaN or infinite"):
        method(weight, IntegerBits(format="int4"), torch.eye(4), name="layer.weight")


def test_a_weight_that_is_no_matrix_is_refused():
    with pytest.raises(BadWeightsError, match=r"\[out, in\], found \[2, 3, 4\]"):
        rtn(torch.zeros(2, 3, 4), IntegerBits(format="int4"))


def test_low_precision_weights_are_rounded_in_float32_and_left_alone():
    weight = random_weight(3, 9).bfloat16()
    before = weight.clone()
    spec = IntegerBits(format="int8")
    assert torch.equal(rtn(weight, spec).codes, rtn(weight.float(), spec).codes)
    assert torch.equal(weight, before)


def test_the_recipe_and_the_table_name_the_same_methods():
    # qat is trained, not applied: its codes are those of rtn.
    assert {*METHODS, "qat"} == set(IntegerBits.model_fields["method"].annotation.__args__)
    assert set(METHODS) == set(NEEDS)
