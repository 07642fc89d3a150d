"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the error made good by the columns to come."""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError
from mote_quant.formats.groups import group_width
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, finite_weight
from mote_quant.steps.quantize.methods.grid import Grid, find_grid, from_grid, round_to_grid

BLOCK = 128
DAMPING = 0.01
DAMPING_RETRIES = 4


def gptq(
    weight: Tensor,
    spec: IntegerBits,
    hessian: Tensor | None = None,
    *,
    name: str = "weight",
    act_order: bool = True,
) -> Codes:
    """Codes of a weight [out, in] that keep W x, for inputs with Hessian [in, in], closer than rounding to nearest.

    With `act_order` the columns with the largest inputs go first, on the grids of the untouched weight; without it
    columns go left to right, and a group's grid is found when its first column is reached. Codes are in the original
    column order either way. A column that calibration never saw is rounded to nearest.
    """
    values = finite_weight(weight, name)
    columns = values.shape[1]
    curvature = _checked(hessian, values, name)
    order = torch.arange(columns, device=values.device)
    if act_order:
        order = torch.argsort(curvature.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(curvature, order, name)
    grid = find_grid(values, spec, name)
    groups = order // group_width(spec.group_size, columns)
    codes = _round_columns(values[:, order], factor, grid, groups, spec, refresh=not act_order)
    return Codes(codes[:, torch.argsort(order)], grid.scale, grid.zero)


def _round_columns(
    weight: Tensor, factor: Tensor, grid: Grid, groups: Tensor, spec: IntegerBits, refresh: bool
) -> Tensor:
    """Rounds `weight` block by block, overwriting it; with `refresh`, overwrites the grid group by group as well."""
    codes = torch.empty_like(weight, dtype=torch.int16)
    for start, end in _blocks(weight.shape[1], spec.group_size if refresh else -1):
        if refresh:
            _refresh(grid, weight, start, spec)
        errors = _round_block(
            weight[:, start:end], codes[:, start:end], factor[start:end, start:end], grid, groups[start:end], spec
        )
        weight[:, end:] -= errors @ factor[start:end, end:]
    return codes


def _round_block(
    weight: Tensor, codes: Tensor, factor: Tensor, grid: Grid, groups: Tensor, spec: IntegerBits
) -> Tensor:
    """Rounds a block into `codes`, carrying errors to the right inside it; returns them [out, block] for the rest."""
    errors = torch.empty_like(weight)
    scales, zeros = grid.scale[:, groups].float(), None if grid.zero is None else grid.zero[:, groups].float()
    for i in range(weight.shape[1]):
        scale, zero = scales[:, i], None if zeros is None else zeros[:, i]
        rounded = round_to_grid(weight[:, i], scale, zero, spec)
        codes[:, i] = rounded
        errors[:, i] = (weight[:, i] - from_grid(rounded, scale, zero)) / factor[i, i]
        weight[:, i + 1 :].addr_(errors[:, i], factor[i, i + 1 :], alpha=-1.0)
    return errors


def _blocks(columns: int, group_size: int) -> list[tuple[int, int]]:
    """Runs of at most BLOCK columns, none of them across the start of a group."""
    width = group_width(group_size, columns)
    ends = [(first, min(first + width, columns)) for first in range(0, columns, width)]
    return [(start, min(start + BLOCK, end)) for first, end in ends for start in range(first, end, BLOCK)]


def _refresh(grid: Grid, weight: Tensor, start: int, spec: IntegerBits) -> None:
    """Finds the grid of the group that begins at column `start` anew; does nothing inside a group."""
    width = group_width(spec.group_size, weight.shape[1])
    if start % width:
        return
    fresh = find_grid(weight[:, start : start + width], spec)
    grid.scale[:, start // width] = fresh.scale[:, 0]
    if grid.zero is not None and fresh.zero is not None:
        grid.zero[:, start // width] = fresh.zero[:, 0]


def _checked(hessian: Tensor | None, weight: Tensor, name: str) -> Tensor:
    """A copy of the Hessian; a zero on its diagonal (an input never seen) becomes the mean of the others."""
    columns = weight.shape[1]
    if hessian is None:
        raise CalibrationError(f"{name}: gptq needs the Hessian of its inputs; give calibration data, or use rtn")
    if tuple(hessian.shape) != (columns, columns):
        raise CalibrationError(f"{name}: the Hessian must be [{columns}, {columns}], found {list(hessian.shape)}")
    curvature = hessian.detach().to(weight, copy=True)
    if not bool(curvature.isfinite().all()):
        raise CalibrationError(f"{name}: the Hessian holds NaN or infinite values; calibration inputs are too large")
    diagonal = curvature.diagonal()
    seen = diagonal > 0
    diagonal[~seen] = diagonal[seen].mean() if bool(seen.any()) else 1.0
    return curvature


def _inverse_factor(hessian: Tensor, order: Tensor, name: str) -> Tensor:
    """Upper triangular float32 U with U^T U = H^-1, of the damped H in the given column order.

    With L the Cholesky factor of H in the opposite order, U is L^-1 turned by 180 degrees: the inverse of H, which
    would cost precision, is never formed. The damping grows tenfold while H is not positive definite.
    """
    opposite = order.flip(0)
    reversed_hessian = hessian[opposite][:, opposite].double()
    mean = reversed_hessian.diagonal().mean()
    damping = 0.0
    for attempt in range(DAMPING_RETRIES):
        reversed_hessian.diagonal().add_(mean * (DAMPING * 10**attempt - damping))
        damping = DAMPING * 10**attempt
        lower, failed = torch.linalg.cholesky_ex(reversed_hessian)
        if not int(failed):
            identity = torch.eye(len(hessian), dtype=lower.dtype, device=lower.device)
            inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
            return inverse.float().flip(0, 1)
    raise CalibrationError(
        f"{name}: the Hessian is not positive definite, even with damping of {damping:g} times its mean diagonal; "
        "calibrate on more samples, or use rtn"
    )
