"""Per-token absmax int8 activations, symmetric in [-127, 127] (an int8 kernel may then count on never seeing -128)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

EPSILON = 1.0e-5
LIMIT = 127


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integer-valued float32 codes shaped as `x` and float32 scales [..., 1]: `x` is about `codes * scales`."""
    x = x.detach().float()
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_min_(EPSILON).div_(LIMIT)
    return torch.div(x, scales).round_().clamp_(-LIMIT, LIMIT), scales


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        codes, scales = quantize_activations(x)
        return codes.mul_(scales).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def fake_quantize_activations(x: Tensor) -> Tensor:
    """`x` [..., features] rounded to int8 per token and back, in `x`'s type, with a straight-through gradient."""
    return cast(Tensor, _StraightThrough.apply(x)) if x.numel() else x  # type: ignore[no-untyped-call]
