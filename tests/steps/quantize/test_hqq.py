from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import FormatError
from mote_quant.formats import dtype_of, format_for
from mote_quant.formats import grid as grids
from mote_quant.formats.groups import split_groups
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import hqq, rtn

specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 1, 3, 8, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    method=st.just("hqq"),
)
shapes = st.tuples(st.integers(0, 4), st.integers(0, 20))


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def dense(codes, spec):
    form = format_for(spec)
    return form.decompress(form.compress(codes), tuple(codes.codes.shape), torch.float32)


def lost(weight, method, spec):
    return split_groups(dense(method(weight, spec), spec) - weight, spec.group_size).square().sum(-1)


def nearest(spec, **changes):
    return spec.model_copy(update={"method": "rtn", **changes})


@given(spec=specs, shape=shapes, seed=st.integers(0, 99), middle=st.sampled_from([0.0, 0.3, 5.0]))
def test_no_group_is_worse_than_rounded_to_nearest(spec, shape, seed, middle):
    weight = random(*shape, seed) + middle
    before = lost(weight, rtn, nearest(spec))
    assert bool((lost(weight, hqq, spec) <= before * (1 + 1e-4) + 1e-9).all())


@pytest.mark.parametrize(("format", "part"), [("int4", 0.95), ("int3", 0.95), ("int2", 0.9)])
def test_zero_points_between_the_codes_beat_whole_ones(format, part):
    weight = random(64, 256)
    spec = IntegerBits(format=format, group_size=64, symmetric=False, method="hqq")
    best_whole = lost(weight, rtn, nearest(spec, clip="search")).sum()
    assert float(lost(weight, hqq, spec).sum()) < part * float(best_whole)


def test_weights_on_a_grid_that_does_not_hold_0_come_back_exactly():
    spec = IntegerBits(format="int3", symmetric=False, method="hqq", scale_dtype="float32")
    weight = 2.3 + 0.25 * torch.arange(8.0).unsqueeze(0)
    assert torch.allclose(dense(hqq(weight, spec), spec), weight, rtol=0, atol=1e-6)


@given(spec=specs, seed=st.integers(0, 99))
def test_zero_points_have_the_type_of_the_scales_and_symmetric_grids_none(spec, seed):
    found = hqq(random(3, 20, seed), spec)
    assert found.scale.dtype == dtype_of(spec.scale_dtype)
    assert (found.zero is None) == spec.symmetric
    if found.zero is not None:
        assert found.zero.dtype == found.scale.dtype


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-4])
def test_equal_weights_come_back(symmetric, value):
    spec = IntegerBits(format="int4", group_size=4, symmetric=symmetric, method="hqq")
    weight = torch.full((2, 10), value)
    found = dense(hqq(weight, spec), spec)
    assert torch.allclose(found, weight, rtol=0.1 if symmetric else 1e-3, atol=0)


@given(spec=specs, size=st.sampled_from([1e-30, 1e-6, 1e3]), seed=st.integers(0, 99))
def test_weights_of_any_size_stay_finite(spec, size, seed):
    assert bool(dense(hqq(random(3, 20, seed) * size, spec), spec).isfinite().all())


def test_the_columns_that_fill_a_short_last_group_count_for_nothing():
    weight = random(16, 20) + 3
    spec = IntegerBits(format="int3", group_size=16, symmetric=False, method="hqq")
    alone = IntegerBits(format="int3", symmetric=False, method="hqq")
    assert torch.equal(dense(hqq(weight, spec), spec)[:, 16:], dense(hqq(weight[:, 16:], alone), alone))


def test_a_scale_that_cannot_be_stored_is_refused_by_name():
    with pytest.raises(FormatError, match=r"layer\.weight.*does not fit float16"):
        hqq(random(2, 6) * 1e7, IntegerBits(format="int4", symmetric=False, method="hqq"), name="layer.weight")


def test_rows_at_a_time_change_nothing(monkeypatch):
    weight = random(9, 20)
    spec = IntegerBits(format="int3", group_size=8, symmetric=False, method="hqq")
    together = hqq(weight, spec)
    monkeypatch.setattr("mote_quant.formats.grid.ELEMENTS", 45)
    monkeypatch.setattr(grids, "ELEMENTS", 45)
    apart = hqq(weight, spec)
    assert torch.equal(together.codes, apart.codes)
    assert torch.equal(together.zero, apart.zero)
