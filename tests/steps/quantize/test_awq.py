from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import CalibrationError, FormatError
from mote_quant.formats import dtype_of, format_for
from mote_quant.formats import grid as grids
from mote_quant.formats.integer import INPUT_SCALE
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import Seen, rtn
from mote_quant.steps.quantize.methods import awq as awq_of

specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 1, 3, 8, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    clip=st.sampled_from(["none", "search"]),
    method=st.just("awq"),
)


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def uneven(tokens, columns, seed=0):
    """Inputs one column in sixteen of which is much larger than the others, as in a language model."""
    inputs = random(tokens, columns, seed) * (1 + torch.arange(columns) % 3)
    inputs[:, 5::16] *= 30
    return inputs


def awq(weight, spec, inputs, name="weight"):
    return awq_of(weight, spec, Seen(len(inputs), None, inputs), name=name)


def dense(codes, spec):
    form = format_for(spec)
    return form.decompress(form.compress(codes), tuple(codes.codes.shape), torch.float32)


def output_error(weight, codes, spec, inputs):
    return float(((dense(codes, spec) - weight) @ inputs.T).square().sum())


@given(
    spec=specs, rows=st.integers(0, 4), columns=st.integers(0, 20), tokens=st.integers(0, 30), seed=st.integers(0, 99)
)
def test_never_worse_than_rtn_on_the_inputs_seen(spec, rows, columns, tokens, seed):
    weight, inputs = random(rows, columns, seed), uneven(tokens, columns, seed + 1)
    found = awq(weight, spec, inputs)
    nearest = spec.model_copy(update={"method": "rtn", "clip": "none"})
    before = output_error(weight, rtn(weight, nearest), nearest, inputs)
    assert bool(dense(found, spec).isfinite().all())
    assert output_error(weight, found, spec, inputs) <= before * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("clip", ["none", "search"])
def test_much_better_than_rtn_where_a_few_inputs_are_large(clip):
    weight, inputs, fresh = random(32, 64), uneven(200, 64), uneven(200, 64, seed=1)
    spec = IntegerBits(format="int3", group_size=32, method="awq", clip=clip)
    nearest = IntegerBits(format="int3", group_size=32, clip=clip)
    found = output_error(weight, awq(weight, spec, inputs), spec, fresh)
    assert found < 0.7 * output_error(weight, rtn(weight, nearest), nearest, fresh)


def test_searching_ranges_as_well_leaves_less_error():
    weight, inputs = random(32, 64), uneven(200, 64)
    spec = IntegerBits(format="int2", group_size=32, method="awq", clip="search")
    plain = spec.model_copy(update={"clip": "none"})
    found = [output_error(weight, awq(weight, each, inputs), each, inputs) for each in (spec, plain)]
    assert found[0] < 0.7 * found[1]


@given(spec=specs, seed=st.integers(0, 99))
def test_codes_follow_from_the_factors_as_they_are_stored(spec, seed):
    spec = spec.model_copy(update={"clip": "none"})
    weight = random(3, 20, seed)
    found = awq(weight, spec, uneven(50, 20, seed))
    factors = found.companions[INPUT_SCALE]
    expected = rtn(weight / factors.float(), spec)
    assert factors.dtype == dtype_of(spec.scale_dtype)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_columns_that_were_never_reached_keep_the_factor_1(scale_dtype):
    weight, inputs = random(16, 24), uneven(60, 24)
    inputs[:, 5:9] = 0.0
    spec = IntegerBits(format="int3", group_size=8, method="awq", scale_dtype=scale_dtype)
    factors = awq(weight, spec, inputs).companions[INPUT_SCALE]
    assert factors[5:9].tolist() == [1.0] * 4
    assert bool((factors != 1.0).any())


@pytest.mark.parametrize("inputs", [torch.zeros(5, 12), torch.zeros(0, 12)])
def test_inputs_of_nothing_round_to_nearest(inputs):
    weight = random(4, 12)
    spec = IntegerBits(format="int4", group_size=4, method="awq", clip="search")
    found = awq(weight, spec, inputs)
    assert found.companions[INPUT_SCALE].tolist() == [1.0] * 12
    assert torch.equal(found.codes, rtn(weight, IntegerBits(format="int4", group_size=4)).codes)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6, 1e30, 3e38])
@pytest.mark.parametrize("clip", ["none", "search"])
def test_inputs_of_any_size_leave_finite_weights(size, clip):
    weight, inputs = random(4, 12), torch.ones(5, 12)
    inputs[:, 3] = size
    spec = IntegerBits(format="int4", group_size=4, method="awq", clip=clip)
    assert bool((dense(awq(weight, spec, inputs), spec) - weight).abs().max() < 1.0)


def test_zero_weights_stay_zero():
    spec = IntegerBits(format="int4", group_size=4, symmetric=False, method="awq", clip="search")
    assert torch.equal(dense(awq(torch.zeros(3, 10), spec, uneven(20, 10)), spec), torch.zeros(3, 10))


def test_factors_whose_scales_cannot_be_stored_are_passed_over():
    weight, inputs = random(4, 12) * 1e5, uneven(30, 12)
    spec = IntegerBits(format="int4", group_size=4, method="awq")
    found = dense(awq(weight, spec, inputs), spec)
    assert bool((found - weight).abs().max() < weight.abs().max() / 4)
    with pytest.raises(FormatError, match=r"layer\.weight.*does not fit float16"):
        awq(weight * 10, spec, inputs, name="layer.weight")


def test_rows_at_a_time_change_nothing(monkeypatch):
    weight, inputs = random(9, 20), uneven(50, 20)
    spec = IntegerBits(format="int3", group_size=8, symmetric=False, method="awq", clip="search")
    together = awq(weight, spec, inputs)
    monkeypatch.setattr(import_module("mote_quant.steps.quantize.methods.awq"), "ROWS", 2)
    monkeypatch.setattr(grids, "ELEMENTS", 45)
    apart = awq(weight, spec, inputs)
    assert torch.equal(together.codes, apart.codes)
    assert torch.equal(together.scale, apart.scale)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (None, "needs some of its inputs"),
        (Seen(4, torch.eye(4)), "needs some of its inputs"),
        (Seen(3, None, torch.zeros(3, 5)), r"must be \[tokens, 4\], found \[3, 5\]"),
        (Seen(3, None, torch.full((3, 4), torch.nan)), "NaN or infinite"),
    ],
)
def test_unusable_inputs_are_refused_by_name(seen, message):
    with pytest.raises(CalibrationError, match=rf"layer\.weight.*{message}"):
        awq_of(torch.zeros(3, 4), IntegerBits(format="int4", method="awq"), seen, name="layer.weight")


def test_arguments_are_left_alone():
    weight, inputs = random(4, 12), uneven(20, 12)
    before = weight.clone(), inputs.clone()
    awq(weight, IntegerBits(format="int4", group_size=4, method="awq", clip="search"), inputs)
    assert torch.equal(weight, before[0])
    assert torch.equal(inputs, before[1])
