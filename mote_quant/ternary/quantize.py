"""Absmean quantization to {-1, 0, +1} or {-1, +1}: what training, conversion, packing and export all call.

`alpha = max(mean|W|, eps)`; ternary codes are `clip(round(W / alpha), -1, 1)`, as in BitNet b1.58 (arXiv 2402.17764),
binary ones the signs (XNOR-Net, arXiv 1603.05279; 0 counts as positive). Scales are rounded to their storage type
*before* codes are found, so codes can be found again from what is stored. On CPU the native quantizers give the same
bits in one pass; what is written here is their reference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.kernels.cpu import quantizers
from mote_quant.recipe.schema import BinaryBits, ScaledBits
from mote_quant.ternary.packing import unpack_2bit

EPSILON = 1.0e-5


def absmean_scale(weight: Tensor, spec: ScaledBits) -> Tensor:
    """Mean absolute weight, summed in float64: a plain float32 sum is off by enough to change codes.

    `weight` is [out, in]. Returns [1], [out, 1] or [out, groups] by `spec.granularity`, in `spec.scale_dtype`.
    """
    return storable_scale(absolute_sums(weight.detach(), spec) / counts(weight, spec), spec)


def storable_scale(scale: Tensor, spec: ScaledBits) -> Tensor:
    """`scale`, positive and in its storage type."""
    return scale.detach().clamp_min(EPSILON).to(getattr(torch, spec.scale_dtype))


def absolute_sums(weight: Tensor, spec: ScaledBits) -> Tensor:
    """The sums of the absolute weights that share a scale, float64 in the scales' shape."""
    if not quantizers.supports(weight):
        return sums(weight.abs(), spec)
    if spec.granularity == "tensor":
        return quantizers.absolute_sums(weight.reshape(1, -1), weight.numel()).reshape(1)
    return quantizers.absolute_sums(weight, shared_columns(weight.shape[1], spec))


def shared_columns(columns: int, spec: ScaledBits) -> int:
    """How many weights of a row at most share a scale."""
    return spec.group_size if spec.granularity == "group" else columns


def sums(values: Tensor, spec: ScaledBits) -> Tensor:
    """Values [out, in] summed in float64 over the weights that share a scale, in the scales' shape."""
    if spec.granularity == "tensor":
        return values.sum(dtype=torch.float64).reshape(1)
    if spec.granularity == "channel":
        return values.sum(dim=1, keepdim=True, dtype=torch.float64)
    rows, columns = values.shape
    groups = -(-columns // spec.group_size)
    padded = F.pad(values, (0, groups * spec.group_size - columns))
    return padded.reshape(rows, groups, spec.group_size).sum(dim=2, dtype=torch.float64)


def counts(weight: Tensor, spec: ScaledBits) -> Tensor:
    """How many weights of [out, in] share a scale: float64, in a shape that broadcasts over the scales."""
    rows, columns = weight.shape
    if spec.granularity != "group":
        count = columns if spec.granularity == "channel" else rows * columns
        return torch.tensor(float(count), dtype=torch.float64, device=weight.device)
    sizes = [min(spec.group_size, columns - start) for start in range(0, columns, spec.group_size)]
    return torch.tensor(sizes, dtype=torch.float64, device=weight.device)


def expand_scale(scale: Tensor, spec: ScaledBits, columns: int) -> Tensor:
    """`scale` in float32, in a shape that broadcasts over [out, in]."""
    scale = scale.float()
    if spec.granularity == "group":
        return scale.repeat_interleave(spec.group_size, dim=1)[:, :columns]
    return scale


def scaled_codes(weight: Tensor, scale: Tensor, spec: ScaledBits) -> Tensor:
    """The codes of `weight` [out, in] under `scale`: int8 in {-1, 0, 1} or {-1, 1}."""
    weight, columns = weight.detach(), weight.shape[1]
    if quantizers.supports(weight):
        return quantizers.codes(weight, scale, shared_columns(columns, spec), isinstance(spec, BinaryBits))
    return rounded(weight, expand_scale(scale, spec, columns), spec).to(torch.int8)


def scaled_values(weight: Tensor, scale: Tensor, spec: ScaledBits, dtype: torch.dtype = torch.float32) -> Tensor:
    """What those codes stand for: code * scale in float32, then cast to `dtype`."""
    weight, columns = weight.detach(), weight.shape[1]
    if quantizers.supports(weight, dtype):
        return quantizers.values(weight, scale, shared_columns(columns, spec), isinstance(spec, BinaryBits), dtype)
    expanded = expand_scale(scale, spec, columns)
    return rounded(weight, expanded, spec).mul_(expanded).to(dtype)


def compact_codes(weight: Tensor, scale: Tensor, spec: ScaledBits) -> Tensor:
    """The codes of `weight` [out, in] in little memory: uint8 as of `pack_2bit`, or int8 without native quantizers."""
    weight = weight.detach()
    if quantizers.supports(weight):
        return quantizers.packed_codes(
            weight, scale, shared_columns(weight.shape[1], spec), isinstance(spec, BinaryBits)
        )
    return scaled_codes(weight, scale, spec)


def compact_values(codes: Tensor, columns: int, scale: Tensor, spec: ScaledBits, dtype: torch.dtype) -> Tensor:
    """`scaled_values` of the weight [out, columns] whose `compact_codes` these are."""
    if quantizers.supports(codes, dtype):
        return quantizers.packed_values(codes, columns, scale, shared_columns(columns, spec), dtype)
    codes = unpack_2bit(codes, columns) if codes.dtype == torch.uint8 else codes
    return codes.float().mul_(expand_scale(scale, spec, columns)).to(dtype)


def rounded(weight: Tensor, expanded: Tensor, spec: ScaledBits) -> Tensor:
    """The codes as whole float32 numbers, for a scale that `expand_scale` has seen."""
    weight = weight.detach().float()
    if isinstance(spec, BinaryBits):
        return weight.ge(0).to(weight.dtype).mul_(2).sub_(1)
    return torch.div(weight, expanded).round_().clamp_(-1, 1)
