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
from mote_quant.qat.latent import Latent
from mote_quant.recipe.schema import QatBits, ScaledBits, TernaryBits
from mote_quant.ternary.quantize import counts, expand_scale, rounded, sums


def fake_quantize(
    weight: Tensor,
    spec: QatBits,
    strength: float = 1.0,
    learned: Tensor | None = None,
    dtype: torch.dtype | None = None,
    kept: Latent | None = None,
) -> Tensor:
    """`weight` [out, in] as it will be after packing, in `dtype` (None: its own), with straight-through gradients.

    `strength` below 1 blends the full-precision weight in (the warm-up ramp, lambda); at 0 nothing else is left.
    `learned` is a trained scale of `spec.scales: learned`. `kept` are the codes, where they are known already.
    """
    dtype = weight.dtype if dtype is None else dtype
    if strength <= 0.0:
        return weight.to(dtype)
    found = _StraightThrough.apply(weight, learned, spec, strength, dtype, kept)  # type: ignore[no-untyped-call]
    return cast(Tensor, found)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        learned: Tensor | None,
        spec: QatBits,
        strength: float,
        dtype: torch.dtype,
        kept: Latent | None,
    ) -> Tensor:
        ctx.dtype = weight.dtype
        if learned is not None:
            ctx.save_for_backward(weight, learned)
            ctx.settings = spec, strength
        if kept is not None:
            return kept.values(dtype)
        quantized = rounded_weight(weight, spec, learned)
        if strength < 1.0:
            quantized = torch.lerp(weight.detach().to(quantized.dtype), quantized, strength)
        return quantized.to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].to(ctx.dtype)
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None, None
        weight, learned = ctx.saved_tensors
        spec, strength = ctx.settings
        to_scale = strength * scale_gradient(gradients[0], weight, spec, learned).to(learned.dtype)
        return gradient, to_scale, None, None, None, None


def scale_gradient(gradient: Tensor, weight: Tensor, spec: ScaledBits, learned: Tensor) -> Tensor:
    """The gradient of a learned scale, in its shape, from that of the rounded weight [out, in]."""
    expanded = expand_scale(scale_of(weight, spec, learned), spec, weight.shape[1])
    slope = rounded(weight, expanded, spec)
    if isinstance(spec, TernaryBits):
        ratio = torch.div(weight.detach().float(), expanded)
        slope = slope - ratio.where(ratio.abs() < 1.0, torch.zeros_like(ratio))
    return sums(slope * gradient.float(), spec) / counts(weight, spec).sqrt()
