"""A linear layer that trains latent weights through their ternary values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary.activation import fake_quantize_activations
from mote_quant.ternary.quantize import fake_quantize, ternary_codes, ternary_scale


class TernaryLinear(nn.Linear):
    """`y = x W^T + b` with W replaced by its ternary value in every forward; `weight` holds the latent floats.

    `strength` is the warm-up ramp: 1 is fully ternary, 0 is full precision.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: TernaryBits,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.spec = spec
        self.strength = 1.0

    def quantize_input(self, x: Tensor) -> Tensor:
        """`x` [..., in] as the matrix product will see it."""
        return fake_quantize_activations(x) if self.spec.activations == "int8" else x

    def multiply(self, x: Tensor) -> Tensor:
        """The product with an input that `quantize_input` has seen."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, fake_quantize(self.weight, self.spec, self.strength).to(x.dtype), bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.multiply(self.quantize_input(input))

    def codes(self) -> tuple[Tensor, Tensor]:
        """The codes (int8 [out, in]) and the scale that packing will store."""
        scale = ternary_scale(self.weight, self.spec)
        return ternary_codes(self.weight, scale, self.spec), scale
