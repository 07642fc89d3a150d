from __future__ import annotations

import pytest
import torch

from mote_quant.ternary.activation import fake_quantize_activations, quantize_activations


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_codes_are_whole_symmetric_and_per_token():
    x = tokens(2, 3, 17) * torch.tensor([0.01, 1.0, 100.0])[:, None]
    codes, scales = quantize_activations(x)
    assert scales.shape == (2, 3, 1)
    assert torch.equal(codes, codes.round())
    assert torch.equal(codes.abs().amax(-1), torch.full((2, 3), 127.0))
    assert ((codes * scales - x).abs() <= scales / 2 * (1 + 1e-5)).all()


def test_a_token_does_not_depend_on_its_neighbours():
    x = tokens(5, 8)
    alone = torch.stack([fake_quantize_activations(row) for row in x])
    assert torch.equal(fake_quantize_activations(x), alone)


def test_minus_128_never_appears():
    codes, _ = quantize_activations(torch.tensor([[-1.0, 0.99999, 0.0]]))
    assert codes.min() == -127


def test_zeros_and_nothing_stay_what_they_are():
    assert torch.equal(fake_quantize_activations(torch.zeros(2, 4)), torch.zeros(2, 4))
    assert fake_quantize_activations(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_is_kept_and_input_untouched(dtype):
    x = tokens(3, 6).to(dtype)
    before = x.clone()
    assert fake_quantize_activations(x).dtype == dtype
    assert torch.equal(x, before)


def test_the_gradient_is_the_identity():
    x, upstream = tokens(3, 6).requires_grad_(), tokens(3, 6) * 2
    (fake_quantize_activations(x) * upstream).sum().backward()
    assert torch.equal(x.grad, upstream)
