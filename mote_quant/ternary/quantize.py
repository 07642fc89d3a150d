"""Absmean ternary quantization: the one function that training, conversion, packing and export all call.

`alpha = max(mean|W|, eps)` and `codes = clip(round(W / alpha), -1, 1)`, as in BitNet b1.58 (arXiv 2402.17764). Scales
are rounded to their storage type *before* the codes are found, so codes can be found again from what is stored.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.recipe.schema import TernaryBits

EPSILON = 1.0e-5


def ternary_scale(weight: Tensor, spec: TernaryBits) -> Tensor:
    """Mean absolute weight, summed in float64: a plain float32 sum is off by enough to change codes.

    `weight` is [out, in]. Returns [1], [out, 1] or [out, groups] by `spec.granularity`, in `spec.scale_dtype`.
    """
    weight = weight.detach()
    if spec.granularity == "group":
        sums, sizes = _group_sums(weight, spec.group_size)
        mean = sums / sizes
    elif spec.granularity == "channel":
        mean = weight.abs().sum(dim=1, keepdim=True, dtype=torch.float64) / weight.shape[1]
    else:
        mean = (weight.abs().sum(dtype=torch.float64) / weight.numel()).reshape(1)
    return mean.clamp_min(EPSILON).to(getattr(torch, spec.scale_dtype))


def _group_sums(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    groups = -(-columns // size)
    padded = F.pad(weight.abs(), (0, groups * size - columns))
    sums = padded.reshape(rows, groups, size).sum(dim=2, dtype=torch.float64)
    sizes = torch.full((groups,), float(size), dtype=torch.float64, device=weight.device)
    sizes[-1] = columns - (groups - 1) * size
    return sums, sizes


def expand_scale(scale: Tensor, spec: TernaryBits, columns: int) -> Tensor:
    """`scale` in float32, in a shape that broadcasts over [out, in]."""
    scale = scale.float()
    if spec.granularity == "group":
        return scale.repeat_interleave(spec.group_size, dim=1)[:, :columns]
    return scale


def ternary_codes(weight: Tensor, scale: Tensor, spec: TernaryBits) -> Tensor:
    """The codes of `weight` [out, in] under `scale`: int8 in {-1, 0, 1}."""
    return _rounded(weight, expand_scale(scale, spec, weight.shape[1])).to(torch.int8)


def _rounded(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.div(weight.detach().float(), scale).round_().clamp_(-1, 1)


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized weight, exactly. Backward: the identity, unclipped (a clipped one stops |W| > alpha)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, spec: TernaryBits, strength: float) -> Tensor:
        scale = expand_scale(ternary_scale(weight, spec), spec, weight.shape[1])
        quantized = _rounded(weight, scale).mul_(scale).to(weight.dtype)
        return quantized if strength >= 1.0 else torch.lerp(weight.detach(), quantized, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None


def fake_quantize(weight: Tensor, spec: TernaryBits, strength: float = 1.0) -> Tensor:
    """`weight` [out, in] as it will be after packing, with a straight-through gradient.

    `strength` below 1 blends the full-precision weight in (the warm-up ramp, lambda).
    """
    return cast(Tensor, _StraightThrough.apply(weight, spec, strength))  # type: ignore[no-untyped-call]
