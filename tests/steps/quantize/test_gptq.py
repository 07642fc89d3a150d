from __future__ import annotations

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import CalibrationError
from mote_quant.formats import format_for
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize import methods
from mote_quant.steps.quantize.methods import Codes, HessianSum, Seen, rtn


def gptq(weight, spec, hessian, *, act_order=True, name="weight"):
    spec = spec.model_copy(update={"act_order": act_order})
    return methods.gptq(weight, spec, Seen(1, hessian), name=name)


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 400) -> tuple[Tensor, Tensor]:
    """A random weight and the Hessian of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    inputs = torch.randn(tokens, columns, generator=generator) @ mix.T
    hessian = HessianSum(columns)
    hessian.add(inputs)
    return torch.randn(rows, columns, generator=generator), hessian.value()


def dense(found: Codes, spec: IntegerBits) -> Tensor:
    form = format_for(spec)
    stored = form.compress(found)
    return form.decompress(stored, (found.codes.shape[0], found.codes.shape[1]), torch.float32)


def output_error(weight: Tensor, found: Codes, spec: IntegerBits, hessian: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T)"""
    difference = (weight - dense(found, spec)).double()
    return float((difference @ hessian.double() * difference).sum())


@pytest.mark.parametrize("shape", [(16, 128), (7, 101), (33, 150)])
@pytest.mark.parametrize("group_size", [-1, 32, 64])
@pytest.mark.parametrize("name", ["int8", "int4", "int3", "int2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_output_error_is_well_below_rounding(shape, group_size, name, symmetric, act_order):
    spec = IntegerBits(format=name, group_size=group_size, symmetric=symmetric)
    weight, hessian = problem(*shape)
    plain = output_error(weight, rtn(weight, spec), spec, hessian)
    ours = output_error(weight, gptq(weight, spec, hessian, act_order=act_order), spec, hessian)
    assert ours < 0.7 * plain


def test_large_inputs_first_is_the_better_order():
    spec = IntegerBits(format="int3", group_size=32)
    errors = {True: 0.0, False: 0.0}
    for seed in range(5):
        weight, hessian = problem(16, 96, seed)
        for act_order in errors:
            errors[act_order] += output_error(weight, gptq(weight, spec, hessian, act_order=act_order), spec, hessian)
    assert errors[True] < errors[False]


@settings(max_examples=40)
@given(
    rows=st.integers(0, 5),
    columns=st.integers(1, 40),
    group_size=st.sampled_from([-1, 1, 3, 16]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
)
def test_uncorrelated_inputs_of_one_size_leave_nothing_to_correct(rows, columns, group_size, symmetric, act_order):
    spec = IntegerBits(format="int4", group_size=group_size, symmetric=symmetric)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    plain, found = rtn(weight, spec), gptq(weight, spec, torch.eye(columns) * 3.0, act_order=act_order)
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.scale, plain.scale)
    assert symmetric or torch.equal(found.zero, plain.zero)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("sizes", [{"LEAF": 5}, {"LEAF": 1}, {"ROWS": 2}, {"GATHER": 7}])
def test_blocks_change_nothing_but_speed(act_order, sizes, monkeypatch):
    weight, hessian = problem(5, 40)
    spec = IntegerBits(format="int3", group_size=16, symmetric=False)
    found = gptq(weight, spec, hessian, act_order=act_order)
    for size, value in sizes.items():
        monkeypatch.setattr(import_module("mote_quant.steps.quantize.methods.gptq"), size, value)
    again = gptq(weight, spec, hessian, act_order=act_order)
    assert (again.codes != found.codes).float().mean() < 0.01
    assert torch.allclose(again.scale.float(), found.scale.float(), rtol=1e-2)
    assert torch.equal(again.zero, found.zero)


@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_the_textbook_recursion(symmetric):
    """Column by column with the inverse Hessian itself, shrunk by Gaussian elimination: the OBQ form of the paper."""
    weight, hessian = problem(4, 12)
    spec = IntegerBits(format="int4", symmetric=symmetric, scale_dtype="float32")
    found = gptq(weight, spec, hessian, act_order=False)

    scale = found.scale.double().squeeze(1)
    zero = torch.zeros_like(scale) if found.zero is None else found.zero.double().squeeze(1)
    low, high = (-8, 7) if symmetric else (0, 15)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(12, dtype=torch.float64)
    inverse, values = damped.inverse(), weight.double().clone()
    for column in range(12):
        code = (torch.round(values[:, column] / scale) + zero).clamp(low, high)
        assert torch.equal(found.codes[:, column], code.short())
        error = (values[:, column] - (code - zero) * scale) / inverse[column, column]
        values -= error.outer(inverse[column])
        inverse -= inverse[:, column].outer(inverse[column]) / inverse[column, column]


@pytest.mark.parametrize("act_order", [True, False])
def test_inputs_never_seen_are_rounded_to_nearest(act_order):
    weight, hessian = problem(6, 20)
    dead = [0, 7, 19]
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    spec = IntegerBits(format="int4")
    found = gptq(weight, spec, hessian, act_order=act_order)
    assert torch.equal(found.codes[:, dead], rtn(weight, spec).codes[:, dead])
    assert output_error(weight, found, spec, hessian) < output_error(weight, rtn(weight, spec), spec, hessian)


def test_inputs_that_are_all_zero_round_to_nearest():
    weight, _ = problem(3, 10)
    spec = IntegerBits(format="int4", group_size=4)
    assert torch.equal(gptq(weight, spec, torch.zeros(10, 10)).codes, rtn(weight, spec).codes)


def test_fewer_tokens_than_inputs_is_enough():
    weight, hessian = problem(6, 50, tokens=3)
    spec = IntegerBits(format="int4")
    plain = output_error(weight, rtn(weight, spec), spec, hessian)
    assert output_error(weight, gptq(weight, spec, hessian), spec, hessian) < 0.1 * plain


def test_a_slightly_indefinite_hessian_is_damped_more():
    weight, hessian = problem(6, 20)
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(20)
    assert float(torch.linalg.eigvalsh(hessian)[0]) < -0.01 * float(hessian.diagonal().mean())
    spec = IntegerBits(format="int4")
    assert bool(dense(gptq(weight, spec, hessian), spec).isfinite().all())


def test_a_hopeless_hessian_is_refused_by_name():
    weight, _ = problem(3, 4)
    hessian = torch.eye(4) - 30 * torch.ones(4, 4).fill_diagonal_(0)
    with pytest.raises(CalibrationError, match=r"layer\.weight.*not positive definite"):
        gptq(weight, IntegerBits(format="int4"), hessian, name="layer.weight")


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (None, "needs the Hessian"),
        (torch.eye(5), r"must be \[4, 4\]"),
        (torch.full((4, 4), torch.nan), "NaN or infinite"),
    ],
)
def test_an_unusable_hessian_is_refused_by_name(hessian, message):
    with pytest.raises(CalibrationError, match=f"layer.weight.*{message}"):
        gptq(torch.zeros(3, 4), IntegerBits(format="int4"), hessian, name="layer.weight")


@pytest.mark.parametrize("act_order", [True, False])
def test_a_group_whose_grid_is_found_late_is_fitted_to_the_weights_as_they_then_are(act_order):
    """The second group's columns are fed by what the first one's errors leave to make good: twice each."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 8, generator=generator).round(decimals=1)
    tied = torch.eye(4).repeat(2, 2) + 1e-3 * torch.eye(8)
    spec = IntegerBits(format="int2", group_size=4, scale_dtype="float32", method="gptq", damping=1e-6)
    found = gptq(weight, spec, tied, act_order=act_order)
    errors = weight[:, :4] - dense(found, spec)[:, :4]
    moved = weight[:, 4:] + errors if not act_order else weight[:, 4:]
    assert torch.allclose(found.scale[:, 1], moved.abs().amax(1) * 2 / 3, rtol=5e-3)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_the_unit_of_the_inputs_does_not_matter(factor, act_order):
    weight, hessian = problem(5, 30)
    spec = IntegerBits(format="int4", group_size=8)
    found = gptq(weight, spec, hessian / hessian.abs().max() * factor, act_order=act_order)
    assert (found.codes != gptq(weight, spec, hessian, act_order=act_order).codes).float().mean() < 0.01


@pytest.mark.parametrize("act_order", [True, False])
def test_single_precision_is_enough_for_inputs_that_almost_depend_on_one_another(act_order):
    weight, hessian = problem(8, 96)
    generator = torch.Generator().manual_seed(1)
    mix = torch.linalg.qr(torch.randn(96, 96, generator=generator)).Q * torch.logspace(2, -6, 96)
    hessian = (mix @ mix.T).float()
    spec = IntegerBits(format="int4", group_size=32, method="gptq", act_order=act_order)
    found = gptq(weight, spec, hessian, act_order=act_order)
    exact = output_error(weight, in_double(weight, spec, hessian), spec, hessian)
    assert output_error(weight, found, spec, hessian) < 1.02 * exact


def in_double(weight: Tensor, spec: IntegerBits, hessian: Tensor) -> Codes:
    """The same with the factor found in float64."""
    module = import_module("mote_quant.steps.quantize.methods.gptq")
    single = module._cholesky
    try:
        module._cholesky = lambda h, order, diagonal, unit: single(h.double(), order, diagonal.double(), unit).float()
        return methods.gptq(weight, spec, Seen(1, hessian))
    finally:
        module._cholesky = single


@pytest.mark.parametrize("act_order", [True, False])
def test_clip_search_gives_up_the_few_largest_weights_for_the_rest(act_order):
    whole, search = (IntegerBits(format="int3", group_size=48, clip=clip) for clip in ("none", "search"))
    lost = {"none": 0.0, "search": 0.0}
    for seed in range(5):
        weight, hessian = problem(32, 96, seed)
        for spec in (whole, search):
            lost[spec.clip] += output_error(weight, gptq(weight, spec, hessian, act_order=act_order), spec, hessian)
    assert lost["search"] < 0.95 * lost["none"]


@pytest.mark.parametrize("act_order", [True, False])
def test_clip_search_weighs_columns_by_what_goes_into_them(act_order):
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    weight[:, :2] *= 3.0
    spec = IntegerBits(format="int3", group_size=16, clip="search")
    clipped, kept = torch.eye(32), torch.eye(32)
    kept[0, 0], kept[1, 1] = 50.0, 50.0
    first, second = (gptq(weight, spec, hessian, act_order=act_order) for hessian in (clipped, kept))
    errors = [(weight - dense(found, spec))[:, :2].square().sum() for found in (first, second)]
    assert errors[1] < 0.8 * errors[0]
    assert torch.equal(first.scale[:, 1], second.scale[:, 1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    columns=st.integers(1, 70),
    tokens=st.integers(1, 5),
    dead=st.floats(0, 1),
    size=st.sampled_from([1e-15, 1e-3, 1.0, 1e6, 1e15]),
    act_order=st.booleans(),
    clip=st.sampled_from(["none", "search"]),
)
def test_few_tokens_dead_inputs_and_outliers_never_give_nan(seed, columns, tokens, dead, size, act_order, clip):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) * (torch.rand(columns, generator=generator) >= dead)
    inputs[:, 0] *= size
    total = HessianSum(columns)
    total.add(inputs)
    weight = torch.randn(3, columns, generator=generator)
    spec = IntegerBits(format="int3", group_size=16, clip=clip)
    found = gptq(weight, spec, total.value(), act_order=act_order)
    assert int(found.codes.min()) >= -4
    assert int(found.codes.max()) <= 3
    assert bool(dense(found, spec).isfinite().all())


def test_arguments_are_left_alone():
    weight, hessian = problem(3, 20)
    before = weight.clone(), hessian.clone()
    gptq(weight, IntegerBits(format="int4", group_size=8), hessian, act_order=False)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])
