"""The integer grid: which scale and zero point a group of weights gets, and rounding to it.

Symmetric: scale = 2 absmax / (2^b - 1). Asymmetric: the range is stretched to hold 0, scale = range / (2^b - 1), and 0
is exactly the code `zero`. Scales are rounded to their stored type first, so that codes follow from what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.clip import Loss, squared_loss
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.formats.integer import code_range
from mote_quant.recipe.schema import IntegerBits

RATIOS = tuple(1 - step / 40 for step in range(1, 25))
"""Parts of a group's range that `clip: search` tries beside the whole of it: down to 0.4, where int2 finds its own."""
ELEMENTS = 2**18
"""Weights searched at a time: few enough to stay in a processor's cache, and a bound on what is copied."""


@dataclass(frozen=True)
class Grid:
    """Scales in their stored type and zero points (uint8, or None if symmetric), one per group."""

    scale: Tensor
    zero: Tensor | None

    def __getitem__(self, rows: slice) -> Grid:
        """The grid of some rows; what is written into it is written into this one."""
        return Grid(self.scale[rows], None if self.zero is None else self.zero[rows])

    def put(self, other: Grid, where: Tensor) -> None:
        """Overwrite the groups of a mask [out, groups] by those of another grid."""
        self.scale[where] = other.scale[where]
        if self.zero is not None and other.zero is not None:
            self.zero[where] = other.zero[where]

    @property
    def spread(self) -> tuple[Tensor, Tensor | None]:
        """Scale and zero with one more axis, to broadcast over the weights of a group."""
        return self.scale.unsqueeze(-1), None if self.zero is None else self.zero.unsqueeze(-1)


def find_grid(weight: Tensor, spec: IntegerBits, name: str = "weight", importance: Tensor | None = None) -> Grid:
    """The grid of every group of a float32 weight [out, columns]: scale (and zero) [out, groups].

    With `spec.clip` the range that loses least is taken; `importance` ([columns], at least 0) says how much a squared
    error counts in each column, as the diagonal of a Hessian does.
    """
    # The zeros that fill a short last group change nothing: every grid holds 0.
    groups = split_groups(weight, spec.group_size)
    if spec.clip == "none":
        return whole_grid(groups, spec, name)
    return search_grid(groups, spec, squared_loss(spec.group_size, importance), name)


def whole_grid(groups: Tensor, spec: IntegerBits, name: str = "weight") -> Grid:
    """The grid that holds the largest weights of every group [out, groups, width]."""
    return _spanning(*_extremes(groups, spec.symmetric), spec, name)


def search_grid(groups: Tensor, spec: IntegerBits, loss: Loss, name: str = "weight") -> Grid:
    """Of grids over parts of the range and over the whole, the one by which a group [out, groups, width] loses least.

    Never worse than `whole_grid`: a part has to be better by the loss to be taken.
    """
    grid = whole_grid(groups, spec, name)
    for rows in row_slices(groups):
        _shrink(grid[rows], groups[rows], spec, loss)
    return grid


def _shrink(grid: Grid, groups: Tensor, spec: IntegerBits, loss: Loss) -> None:
    """Overwrite the grid of the whole range wherever that of a part of it loses less."""
    low, high = _extremes(groups, spec.symmetric)
    least = loss(group_errors(groups, grid, spec))
    for ratio in RATIOS:
        part = _spanning(low * ratio, high * ratio, spec)
        lost = loss(group_errors(groups, part, spec))
        better = lost < least
        least = lost.where(better, least)
        grid.put(part, better)


def group_errors(groups: Tensor, grid: Grid, spec: IntegerBits) -> Tensor:
    """What rounding adds to the weights [out, groups, width]."""
    return from_grid(round_to_grid(groups, *grid.spread, spec), *grid.spread).sub_(groups)


def nearest_codes(weight: Tensor, grid: Grid, spec: IntegerBits) -> Tensor:
    """A float32 weight [out, columns] -> the int16 code of every element."""
    codes = torch.empty_like(weight, dtype=torch.int16)
    for rows in row_slices(weight):
        groups = split_groups(weight[rows], spec.group_size)
        codes[rows] = join_groups(round_to_grid(groups, *grid[rows].spread, spec), weight.shape[1])
    return codes


def nearest_values(weight: Tensor, grid: Grid, spec: IntegerBits) -> Tensor:
    """What the `nearest_codes` of a float32 weight [out, columns] stand for, in float32: the weight, rounded."""
    groups = split_groups(weight, spec.group_size)
    return join_groups(from_grid(round_to_grid(groups, *grid.spread, spec), *grid.spread), weight.shape[1])


def row_slices(weight: Tensor) -> Iterator[slice]:
    """The rows of a weight, some at a time."""
    count = max(1, ELEMENTS // max(1, weight[:1].numel()))
    return (slice(start, start + count) for start in range(0, len(weight), count))


def round_to_grid(values: Tensor, scale: Tensor, zero: Tensor | None, spec: IntegerBits) -> Tensor:
    """float32 values -> the nearest codes, as whole float32 numbers; scale and zero broadcast over the values."""
    codes, (first, last) = values / scale.float(), code_range(spec)
    if zero is None:
        return codes.round_().clamp_(first, last)
    # As compressed-tensors counts, from the middle and before rounding: both decide which way a tie goes.
    middle = (first + last + 1) // 2
    return codes.add_(zero.float() - middle).round_().add_(middle).clamp_(first, last)


def from_grid(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes -> the float32 values they stand for."""
    return (codes if zero is None else codes - zero.float()) * scale.float()


def _spanning(low: Tensor, high: Tensor, spec: IntegerBits, name: str = "weight") -> Grid:
    first, last = code_range(spec)
    scale = storable((high - low) / (last - first), spec, name)
    return Grid(scale, None if spec.symmetric else round_to_grid(-low, scale, None, spec).to(torch.uint8))


def _extremes(groups: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if groups.numel() == 0:
        return groups.new_zeros(groups.shape[:-1]), groups.new_zeros(groups.shape[:-1])
    low, high = groups.amin(-1).clamp_(max=0.0), groups.amax(-1).clamp_(min=0.0)
    if symmetric:
        high = torch.maximum(high, -low)
        return -high, high
    return low, high


def storable(scale: Tensor, spec: IntegerBits, name: str) -> Tensor:
    """Scales in their stored type, finite and above 0; 1 for a group of zeros; FormatError if one is too large."""
    dtype = dtype_of(spec.scale_dtype)
    limits = torch.finfo(dtype)
    if bool((scale > limits.max).any()):
        fix = "take scale_dtype: bfloat16 or float32" if spec.scale_dtype == "float16" else "the weights are too large"
        raise FormatError(f"{name}: a scale of {float(scale.max()):.3g} does not fit {spec.scale_dtype}; {fix}")
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    return scale.clamp(min=smallest).masked_fill(scale == 0, 1.0).to(dtype)
