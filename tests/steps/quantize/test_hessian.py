from __future__ import annotations

from importlib import import_module

import pytest
import torch

from mote_quant.errors import CalibrationError
from mote_quant.steps.quantize.methods import HessianSum


def test_it_is_twice_the_mean_outer_product():
    inputs = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    hessian = HessianSum(7)
    hessian.add(inputs)
    expected = 2 * torch.stack([row.double().outer(row.double()) for row in inputs]).mean(0)
    assert hessian.tokens == 50
    assert hessian.value().dtype == torch.float32
    assert torch.allclose(hessian.value().double(), expected, rtol=1e-5, atol=1e-6)


def test_batches_and_their_order_do_not_matter():
    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(1)) * 100
    whole, parts = HessianSum(5), HessianSum(5)
    whole.add(inputs)
    for part in reversed(inputs.split([1, 0, 20, 39])):
        parts.add(part)
    assert parts.tokens == whole.tokens == 60
    assert torch.allclose(parts.value(), whole.value(), rtol=1e-5, atol=1e-2)


def test_leading_axes_count_tokens_and_low_precision_is_summed_in_float32():
    inputs = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    hessian, flat = HessianSum(3), HessianSum(3)
    hessian.add(inputs)
    flat.add(inputs.float().reshape(24, 3))
    assert hessian.tokens == 24
    assert torch.equal(hessian.value(), flat.value())
    assert not hessian.value().requires_grad


@pytest.mark.parametrize("columns", [1, 8, 9, 37])
def test_computing_one_triangle_gives_the_whole(columns, monkeypatch):
    monkeypatch.setattr(import_module("mote_quant.steps.quantize.methods.hessian"), "BLOCK", 4)
    inputs = torch.randn(50, columns, generator=torch.Generator().manual_seed(3))
    hessian, again = HessianSum(columns), HessianSum(columns)
    for total in (hessian, again):
        for part in inputs.split(20):
            total.add(part)
            total.value()
    expected = inputs.double().T @ inputs.double() / 25
    assert torch.allclose(hessian.value().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(hessian.value(), hessian.value().T)
    assert torch.equal(hessian.value(), again.value())


def test_rows_are_cast_a_few_at_a_time(monkeypatch):
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    whole, few = HessianSum(6), HessianSum(6)
    whole.add(inputs)
    monkeypatch.setattr(import_module("mote_quant.steps.quantize.methods.hessian"), "CHUNK", 20)
    few.add(inputs)
    assert few.tokens == 50
    assert torch.allclose(few.value(), whole.value(), rtol=1e-5, atol=1e-6)


def test_the_value_is_no_copy():
    hessian = HessianSum(3)
    hessian.add(torch.eye(3))
    assert hessian.value().data_ptr() == hessian.value().data_ptr()


def test_value_can_be_read_between_batches():
    hessian = HessianSum(2)
    hessian.add(torch.eye(2))
    first = hessian.value().clone()
    hessian.add(torch.eye(2))
    assert torch.equal(hessian.value(), first)
    hessian.add(torch.full((4, 2), 2.0))
    assert torch.allclose(hessian.value(), torch.tensor([[4.5, 4.0], [4.0, 4.5]]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_inputs_that_are_not_finite_are_refused_and_not_counted(value):
    hessian = HessianSum(2, name="layer.weight")
    with pytest.raises(CalibrationError, match=r"layer\.weight.*NaN or infinite"):
        hessian.add(torch.tensor([[1.0, value]]))
    assert hessian.tokens == 0


@pytest.mark.parametrize("inputs", [torch.zeros(3, 4), torch.tensor(1.0)])
def test_inputs_of_another_width_are_refused(inputs):
    with pytest.raises(CalibrationError, match=r"must be \[tokens, 2\]"):
        HessianSum(2).add(inputs)


def test_no_tokens_give_no_hessian():
    with pytest.raises(CalibrationError, match=r"layer\.weight saw no calibration token"):
        HessianSum(2, name="layer.weight").value()
