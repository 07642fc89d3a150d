"""The integer grid: which scale and zero point a group of weights gets, and rounding to it.

Symmetric: scale = 2 absmax / (2^b - 1). Asymmetric: the range is stretched to hold 0, scale = range / (2^b - 1), and 0
is exactly the code `zero`. Scales are rounded to their stored type first, so that codes follow from what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import split_groups
from mote_quant.formats.integer import code_range
from mote_quant.recipe.schema import IntegerBits


@dataclass(frozen=True)
class Grid:
    """Scales in their stored type and zero points (uint8, or None if symmetric), one per group."""

    scale: Tensor
    zero: Tensor | None


def find_grid(weight: Tensor, spec: IntegerBits, name: str = "weight") -> Grid:
    """The grid of every group of a float32 weight [out, columns]: scale (and zero) [out, groups]."""
    # The zeros that fill a short last group change nothing: every grid holds 0.
    low, high = _extremes(split_groups(weight, spec.group_size), spec.symmetric)
    first, last = code_range(spec)
    scale = _storable((high - low) / (last - first), spec, name)
    return Grid(scale, None if spec.symmetric else round_to_grid(-low, scale, None, spec).to(torch.uint8))


def round_to_grid(values: Tensor, scale: Tensor, zero: Tensor | None, spec: IntegerBits) -> Tensor:
    """float32 values -> the nearest codes, as whole float32 numbers; scale and zero broadcast over the values."""
    codes = torch.round(values / scale.float())
    return (codes if zero is None else codes + zero.float()).clamp_(*code_range(spec))


def from_grid(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes -> the float32 values they stand for."""
    return (codes if zero is None else codes - zero.float()) * scale.float()


def _extremes(groups: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if groups.numel() == 0:
        return groups.new_zeros(groups.shape[:-1]), groups.new_zeros(groups.shape[:-1])
    if symmetric:
        high = groups.abs().amax(-1)
        return -high, high
    return groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)


def _storable(scale: Tensor, spec: IntegerBits, name: str) -> Tensor:
    """Scales in their stored type, finite and above 0; 1 for a group of zeros; FormatError if one is too large."""
    dtype = dtype_of(spec.scale_dtype)
    limits = torch.finfo(dtype)
    if bool((scale > limits.max).any()):
        fix = "take scale_dtype: bfloat16 or float32" if spec.scale_dtype == "float16" else "the weights are too large"
        raise FormatError(f"{name}: a scale of {float(scale.max()):.3g} does not fit {spec.scale_dtype}; {fix}")
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    return scale.clamp(min=smallest).masked_fill(scale == 0, 1.0).to(dtype)
