"""Half-quadratic quantization (Badri and Shaji 2023): zero points between the codes, found without data.

Their iteration takes the few large errors of a group out of the way (a norm below 1 is shrunk) and moves the zero point
to the middle of what remains. Here it starts from several ranges, and each group keeps what left the least squared
error: the whole range does best at 4 bits, shorter ones at 3 and 2. Symmetric grids have no zero point to move, and
take the range that loses least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.formats.clip import squared_loss
from mote_quant.formats.grid import ELEMENTS, Grid, nearest_codes, search_grid, storable, whole_grid
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.formats.integer import code_range
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight

RATIOS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58, 0.5)
STEPS = 10
NORM = 0.7
SHARPNESS, GROWTH = 10.0, 1.01
"""The weight of the half-quadratic penalty and its growth by the step, as in the paper's code."""


def hqq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in]; zero points are floats in the type of the scales. Never reads what was seen."""
    values = finite_weight(weight, name)
    groups = split_groups(values, spec.group_size)
    if spec.symmetric:
        grid = search_grid(groups, spec, squared_loss(spec.group_size), name)
        return Codes(nearest_codes(values, grid, spec), grid.scale)
    rows = max(1, ELEMENTS // max(1, groups[:1].numel()))
    # The zeros that fill a short last group are no weights: they must not move its zero point.
    real = split_groups(torch.ones_like(values[:1]), spec.group_size)
    found = [_solve(part, real, spec, name) for part in torch.split(groups, rows)]
    scale, zero = torch.cat([grid.scale for grid in found]), torch.cat([_zero(grid) for grid in found])
    codes = _codes(groups, scale.float(), zero.float(), spec)
    return Codes(join_groups(codes, values.shape[1]).to(torch.int16), scale, zero)


def _solve(groups: Tensor, real: Tensor, spec: IntegerBits, name: str) -> Grid:
    """Scales and zero points [rows, groups] of weights [rows, groups, width]."""
    low = groups.masked_fill(real == 0, torch.inf).amin(-1) if groups.numel() else groups.sum(-1)
    high = groups.masked_fill(real == 0, -torch.inf).amax(-1) if groups.numel() else groups.sum(-1)
    best = _rounded_zeros(groups, spec, name)
    least = _lost(groups, real, best, spec)
    for ratio in RATIOS:
        grid = _moved(groups, real, low, (high - low) * ratio, ratio, spec, name)
        lost = _lost(groups, real, grid, spec)
        # False where a zero point is too far away for its type: nearly equal weights far from 0.
        better = lost < least
        best = Grid(grid.scale.where(better, best.scale), _zero(grid).where(better, _zero(best)))
        least = lost.where(better, least)
    return best


def _rounded_zeros(groups: Tensor, spec: IntegerBits, name: str) -> Grid:
    """Where rounding to nearest would start: no group comes out worse than that."""
    grid = whole_grid(groups, spec, name)
    return Grid(grid.scale, _zero(grid).to(grid.scale.dtype))


def _moved(
    groups: Tensor, real: Tensor, low: Tensor, width: Tensor, ratio: float, spec: IntegerBits, name: str
) -> Grid:
    """The grid over a part of the range, in its middle, after the zero point has been moved STEPS times."""
    first, last = code_range(spec)
    # A group of equal weights has no range: its scale is their size, so that one code stands for them exactly.
    scale = storable(torch.where(width > 0, width / (last - first), low.abs()), spec, name)
    step = scale.float()
    zero = -(low + width * (1 - ratio) / (2 * ratio)) / step
    count, beta = real.sum(-1), SHARPNESS
    for _ in range(STEPS):
        codes = _codes(groups, step, zero, spec)
        errors = groups - (codes - zero.unsqueeze(-1)) * step.unsqueeze(-1)
        kept = groups - _shrunk(errors, beta)
        zero = ((codes - kept / step.unsqueeze(-1)) * real).sum(-1) / count
        beta *= GROWTH
    return Grid(scale, zero.to(scale.dtype))


def _shrunk(errors: Tensor, beta: float) -> Tensor:
    """The proximal step of |e|^NORM: small errors become 0, large ones stay almost as they are."""
    size = errors.abs()
    return errors.sign() * (size - size.pow(NORM - 1) / beta).clamp_(min=0.0)


def _codes(groups: Tensor, scale: Tensor, zero: Tensor, spec: IntegerBits) -> Tensor:
    """The nearest codes to weights [rows, groups, width], as whole float32 numbers."""
    return torch.round(groups / scale.unsqueeze(-1) + zero.unsqueeze(-1)).clamp_(*code_range(spec))


def _lost(groups: Tensor, real: Tensor, grid: Grid, spec: IntegerBits) -> Tensor:
    """The squared error of each group [rows, groups], by what would be stored."""
    scale, zero = grid.scale.float(), _zero(grid).float()
    errors = groups - (_codes(groups, scale, zero, spec) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    return (errors * real).square().sum(-1)


def _zero(grid: Grid) -> Tensor:
    return torch.zeros_like(grid.scale) if grid.zero is None else grid.zero
