"""Fake quantization: forward the rounded weight, backward straight through the rounding.

The gradient of the weight is the identity, unclipped: a clipped one would stop every weight beyond the largest code. A
learned scale s gets that of LSQ (arXiv 1902.08153): with codes c = clip(round(w / s)) each weight adds c - w / s where
nothing is clipped and c where it is, divided by the root of the number of weights that share s. The sign of a weight
does not depend on s, so binary codes add c.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.qat.codes import rounded_weight, scale_of
from mote_quant.recipe.schema import QatBits, ScaledBits, TernaryBits
from mote_quant.ternary.quantize import counts, expand_scale, rounded, sums


def fake_quantize(weight: Tensor, spec: QatBits, strength: float = 1.0, learned: Tensor | None = None) -> Tensor:
    """`weight` [out, in] as it will be after packing, with straight-through gradients.

    `strength` below 1 blends the full-precision weight in (the warm-up ramp, lambda); at 0 nothing else is left.
    `learned` is a trained scale of `spec.scales: learned`.
    """
    if strength <= 0.0:
        return weight
    return cast(Tensor, _StraightThrough.apply(weight, learned, spec, strength))  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, learned: Tensor | None, spec: QatBits, strength: float) -> Tensor:
        quantized = rounded_weight(weight, spec, learned).to(weight.dtype)
        if learned is not None:
            ctx.save_for_backward(weight, learned)
            ctx.settings = spec, strength
        return quantized if strength >= 1.0 else torch.lerp(weight.detach(), quantized, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None
        weight, learned = ctx.saved_tensors
        spec, strength = ctx.settings
        return gradient, strength * scale_gradient(gradient, weight, spec, learned).to(learned.dtype), None, None


def scale_gradient(gradient: Tensor, weight: Tensor, spec: ScaledBits, learned: Tensor) -> Tensor:
    """The gradient of a learned scale, in its shape, from that of the rounded weight [out, in]."""
    expanded = expand_scale(scale_of(weight, spec, learned), spec, weight.shape[1])
    slope = rounded(weight, expanded, spec)
    if isinstance(spec, TernaryBits):
        ratio = torch.div(weight.detach().float(), expanded)
        slope = slope - ratio.where(ratio.abs() < 1.0, torch.zeros_like(ratio))
    return sums(slope * gradient.float(), spec) / counts(weight, spec).sqrt()
