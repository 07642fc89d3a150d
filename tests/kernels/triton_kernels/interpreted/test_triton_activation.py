from __future__ import annotations

import pytest
import torch

from mote_quant.kernels.triton.activation import arranged
from mote_quant.ternary.activation import quantize_activations
from tests.kernels.triton_kernels.weights import generator


def columns_of(planes, columns):
    return planes.transpose(1, 2).flatten(1)[:, :columns].cpu()


@pytest.mark.parametrize(("tokens", "columns", "digits"), [(1, 1, 4), (3, 17, 5), (2, 5000, 4), (1, 64, 1), (2, 6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_and_scales_are_those_of_the_quantizer(tokens, columns, digits, dtype, device):
    x = torch.randn(tokens, columns, generator=generator(columns)).to(dtype)
    codes, scales = quantize_activations(x)
    given = arranged(x.to(device), digits, torch.int8)
    assert torch.equal(columns_of(given.planes, columns).float(), codes)
    assert torch.equal(given.scales.cpu(), scales[:, 0])
    assert torch.equal(given.sums.cpu(), codes.sum(-1).int())


def test_halves_round_to_even(device):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    codes = columns_of(arranged(x.to(device), 4, torch.int8).planes, 8)
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


def test_a_token_that_is_not_finite_has_no_scale(device):
    x = torch.ones(4, 9)
    x[0, 3], x[1, 8], x[2, 0] = torch.nan, torch.inf, -torch.inf
    scales = arranged(x.to(device), 5, torch.int8).scales.cpu()
    assert scales.isnan().tolist() == [True, True, True, False]


def test_zeros_have_the_smallest_scale(device):
    given = arranged(torch.zeros(1, 5, device=device), 4, torch.int8)
    assert torch.equal(given.scales.cpu(), quantize_activations(torch.zeros(1, 5))[1][0])
    assert not given.planes.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unquantized_input_is_only_put_in_planes(dtype, device):
    x = torch.randn(3, 2, 13, generator=generator(0)).to(dtype)[:, 1]
    given = arranged(x.to(device), 4)
    assert torch.equal(columns_of(given.planes, 13), x)
    assert not columns_of(given.planes, 4 * given.plane)[:, 13:].any()
    assert given.scales is None


def test_factors_multiply_columns(device):
    x, factors = torch.randn(2, 7, generator=generator(0)), torch.rand(7, generator=generator(1)).half()
    given = arranged(x.to(device), 2, factors=factors.to(device))
    assert torch.equal(columns_of(given.planes, 7), x * factors.float())
