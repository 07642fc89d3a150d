"""Plain torch: what every other implementation must agree with, and what is always there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import ScaledBits
from mote_quant.ternary.activation import fake_quantize_activations


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in], rounded to int8 per token where the spec asks for it, times the unpacked weight."""
    dense = weight.format.decompress(weight.tensors, weight.shape, x.dtype)
    # The product is in the type of x for every implementation, and for those who ask before it is made.
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(rounded_input(x, weight), dense, None if bias is None else bias.to(x.dtype))


def rounded_input(x: Tensor, weight: PackedWeight) -> Tensor:
    """x as the product will see it."""
    return fake_quantize_activations(x) if rounds_input(weight) else x


def rounds_input(weight: PackedWeight) -> bool:
    """Whether activations are part of the format."""
    spec = getattr(weight.format, "spec", None)
    return isinstance(spec, ScaledBits) and spec.activations == "int8"
