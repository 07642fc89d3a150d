from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.formats import format_for
from mote_quant.formats import grid as grids
from mote_quant.formats.clip import output_loss, squared_loss
from mote_quant.formats.grid import find_grid, group_errors, search_grid, whole_grid
from mote_quant.formats.groups import split_groups
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import rtn

specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 1, 3, 8, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    clip=st.just("search"),
)
shapes = st.tuples(st.integers(0, 4), st.integers(0, 20))


def random(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def dense(codes, spec):
    form = format_for(spec)
    return form.decompress(form.compress(codes), tuple(codes.codes.shape), torch.float32)


def plain(spec):
    return spec.model_copy(update={"clip": "none"})


@given(spec=specs, shape=shapes, seed=st.integers(0, 99))
def test_no_group_is_worse_than_without_the_search(spec, shape, seed):
    weight = random(*shape, seed)
    errors = [split_groups(dense(rtn(weight, each), each) - weight, spec.group_size) for each in (spec, plain(spec))]
    searched, whole = (error.square().sum(-1) for error in errors)
    assert bool((searched <= whole * (1 + 1e-5) + 1e-12).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_outlier_is_given_up_where_the_others_gain_more(symmetric):
    weight = torch.linspace(-1, 1, 64).unsqueeze(0).clone()
    weight[0, -1] = 2.0
    spec = IntegerBits(format="int2", symmetric=symmetric, clip="search")
    assert float(rtn(weight, spec).scale) < 0.8 * float(rtn(weight, plain(spec)).scale)
    lost = [float((dense(rtn(weight, each), each) - weight).square().sum()) for each in (spec, plain(spec))]
    assert lost[0] < 0.7 * lost[1]


def test_importance_keeps_the_columns_it_favours():
    weight = random(8, 64)
    weight[:, 0] *= 6
    spec = IntegerBits(format="int3", clip="search")
    importance = torch.ones(64)
    importance[0] = 1e4
    first = find_grid(weight, spec).scale, find_grid(weight, spec, importance=importance).scale
    errors = [(weight[:, 0] - (weight[:, 0] / s[:, 0]).round().clamp(-4, 3) * s[:, 0]).abs().mean() for s in first]
    assert errors[1] < 0.5 * errors[0]


@given(spec=specs, seed=st.integers(0, 99))
def test_equal_importance_is_none(spec, seed):
    weight = random(3, 20, seed)
    found, expected = find_grid(weight, spec, importance=torch.full((20,), 2.0)), find_grid(weight, spec)
    assert torch.equal(found.scale, expected.scale)


def test_importance_of_nothing_leaves_the_whole_range():
    weight = random(3, 20)
    spec = IntegerBits(format="int2", group_size=8, clip="search")
    found = find_grid(weight, spec, importance=torch.zeros(20))
    assert torch.equal(found.scale, find_grid(weight, plain(spec)).scale)


def test_rows_searched_at_a_time_change_nothing(monkeypatch):
    weight = random(7, 20)
    spec = IntegerBits(format="int3", group_size=8, symmetric=False, clip="search")
    together = rtn(weight, spec)
    monkeypatch.setattr(grids, "ELEMENTS", 45)
    apart = rtn(weight, spec)
    assert torch.equal(together.codes, apart.codes)
    assert torch.equal(together.scale, apart.scale)
    assert torch.equal(together.zero, apart.zero)


@given(group_size=st.sampled_from([-1, 1, 4, 7]), tokens=st.sampled_from([0, 1, 3, 50]), seed=st.integers(0, 99))
def test_output_loss_is_the_error_of_a_group_s_part_of_the_outputs(group_size, tokens, seed):
    inputs, errors = random(tokens, 10, seed), random(4, 10, seed + 1)
    lost = output_loss(group_size, inputs)(split_groups(errors, group_size))
    width = 10 if group_size == -1 else group_size
    for group, start in enumerate(range(0, 10, width)):
        part = slice(start, start + width)
        expected = (errors[:, part] @ inputs[:, part].T).square().sum(-1)
        assert torch.allclose(lost[:, group], expected, rtol=1e-4, atol=1e-5)


def test_a_search_by_outputs_loses_less_of_them_than_one_by_weights():
    # The inputs of a group differ from one another in nothing but size: only the sum of its errors counts.
    weight, inputs = random(16, 32), random(40, 1).repeat(1, 32)
    spec = IntegerBits(format="int3", clip="search")
    groups = split_groups(weight, -1)
    by_outputs = search_grid(groups, spec, output_loss(-1, inputs))
    by_weights = search_grid(groups, spec, squared_loss(-1))
    lost = [output_loss(-1, inputs)(group_errors(groups, grid, spec)) for grid in (by_outputs, by_weights)]
    assert bool((lost[0] <= lost[1]).all())
    assert float(lost[0].sum()) < 0.2 * float(lost[1].sum())
    assert bool((lost[0] <= output_loss(-1, inputs)(group_errors(groups, whole_grid(groups, spec), spec))).all())


def test_losses_that_overflow_leave_the_whole_range():
    weight = random(3, 8)
    spec = IntegerBits(format="int2", clip="search")
    found = search_grid(split_groups(weight, -1), spec, output_loss(-1, torch.full((5, 8), 1e38)))
    assert torch.equal(found.scale, find_grid(weight, plain(spec)).scale)
