from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary.activation import fake_quantize_activations
from tests.rounding import assert_same_to_rounding

SPECS = [
    TernaryBits(format="ternary"),
    TernaryBits(format="ternary", granularity="channel", packing="base3", scale_dtype="float16"),
    TernaryBits(format="ternary", granularity="group", group_size=8, activations="none"),
]


def layer(spec: TernaryBits, dtype: torch.dtype = torch.float32, bias: bool = True) -> QatLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return QatLinear(19, 7, spec, bias=bias, dtype=dtype)


def rows(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(5, 19, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_equals_the_packed_layer_to_rounding(spec, dtype):
    made = layer(spec, dtype)
    packed = PackedLinear.pack(spec, made.codes(), made.bias, dtype)
    assert_same_to_rounding(packed(rows(dtype)), made(rows(dtype)))
    assert torch.equal(packed.codes(), made.codes().codes)


@pytest.mark.parametrize("spec", SPECS)
def test_forward_by_hand(spec):
    made = layer(spec)
    codes, scale = made.codes().codes, made.codes().scale.float()
    if spec.granularity == "group":
        scale = torch.stack([scale[:, column // 8] for column in range(19)], dim=1)
    x = rows() if spec.activations == "none" else fake_quantize_activations(rows())
    torch.testing.assert_close(made(rows()), F.linear(x, codes.float() * scale, made.bias))


def test_only_the_latent_weight_is_saved():
    assert set(layer(SPECS[0]).state_dict()) == {"weight", "bias"}


def test_latents_bias_and_input_get_gradients():
    made, x = layer(SPECS[0]), rows().requires_grad_()
    made(x).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in (made.weight, made.bias, x))


def test_autocast_keeps_working():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(SPECS[0])(rows()).dtype == torch.bfloat16


def test_no_rows_give_no_rows():
    assert layer(SPECS[0])(torch.empty(0, 19)).shape == (0, 7)
