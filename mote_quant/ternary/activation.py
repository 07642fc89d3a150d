"""Per-token absmax int8 activations, symmetric in [-127, 127] (an int8 kernel may then count on never seeing -128)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.kernels.cpu import quantizers

EPSILON = 1.0e-5
LIMIT = 127


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integer-valued float32 codes shaped as `x` and float32 scales [..., 1]: `x` is about `codes * scales`."""
    x = x.detach()
    if quantizers.supports(x):
        return quantizers.quantized_activations(x, torch.float32, whole=True)
    x = x.float()
    # By a tensor: CUDA turns a division by a number into a product with its reciprocal, which rounds otherwise.
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_min_(EPSILON).div_(x.new_full((), LIMIT))
    return torch.div(x, scales).round_().clamp_(-LIMIT, LIMIT), scales


def round_activations(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` [..., features] rounded to int8 per token and back, in `dtype`, without a gradient."""
    x = x.detach()
    if not x.numel():
        return x.to(dtype)
    if quantizers.supports(x, dtype):
        return quantizers.quantized_activations(x, dtype)[0]
    codes, scales = quantize_activations(x)
    return codes.mul_(scales).to(dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return round_activations(x, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def fake_quantize_activations(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`x` [..., features] rounded to int8 per token and back, in `dtype` (None: its own); straight-through gradient."""
    return cast(Tensor, _StraightThrough.apply(x, dtype or x.dtype)) if x.numel() else x  # type: ignore[no-untyped-call]
