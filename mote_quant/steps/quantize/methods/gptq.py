"""GPTQ (Frantar et al., arXiv 2210.17323): round column by column, the error made good by the columns to come.

Here with a triangular factor of the Hessian in place of one of its inverse: the same codes (Chee et al., arXiv
2307.13304, theorem 6) for a quarter of the work, and nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError
from mote_quant.formats.grid import Grid, find_grid, from_grid, round_to_grid
from mote_quant.formats.groups import group_width
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight

LEAF = 32
"""Columns rounded one by one before a matrix product carries their errors on."""
ROWS = 4096
"""Rows of a weight rounded at a time: they do not depend on one another, and this bounds what is copied."""
GATHER = 256
"""Rows of a Hessian put in order at a time."""
DAMPING_RETRIES = 4


def gptq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in] that keep W x, for the inputs seen, closer than rounding to nearest.

    With `spec.act_order` the columns with the largest inputs go first, on the grids of the untouched weight; without it
    columns go left to right, and a group's grid is found when its first column is reached. Codes are in the original
    column order either way. A column that calibration never saw is rounded to nearest.
    """
    values = finite_weight(weight, name)
    factor = _factorize(_checked(seen, values, name), spec, name)
    parts = [_round_rows(rows, factor, spec, name) for rows in torch.split(values, ROWS)]
    zeros = [part.zero for part in parts if part.zero is not None]
    codes, scale = torch.cat([part.codes for part in parts]), torch.cat([part.scale for part in parts])
    return Codes(codes, scale, torch.cat(zeros) if zeros else None)


@dataclass(frozen=True)
class _Factor:
    """H = `lower` D `lower`^T with the rows and columns of H in `order`; `lower` [in, in] has ones on its diagonal.

    The order is the opposite of the one in which columns are rounded. `importance` [in] is the diagonal of D: how much
    a column's own rounding counts, which those rounded after it cannot make good.
    """

    order: Tensor
    lower: Tensor
    importance: Tensor


def _round_rows(weight: Tensor, factor: _Factor, spec: IntegerBits, name: str) -> Codes:
    back = torch.argsort(factor.order)
    grid = find_grid(weight, spec, name, factor.importance[back])
    columns = weight.T[factor.order]
    sweep = _Sweep(columns, columns.clone(), torch.empty_like(columns, dtype=torch.int16), factor, grid, spec)
    sweep.run()
    return Codes(sweep.codes[back].T.contiguous(), grid.scale, grid.zero)


Part = tuple[int, int]
"""The first of some columns and the one after the last."""


@dataclass(frozen=True)
class _Sweep:
    """Rows of a weight on their way to codes, transposed so that a column [out] lies together in memory.

    The columns stand in the factor's order and are rounded from the last to the first. `moved` is the weight with the
    errors so far made good; the error of a column takes its place once it is rounded.
    """

    columns: Tensor
    moved: Tensor
    codes: Tensor
    factor: _Factor
    grid: Grid
    spec: IntegerBits

    def run(self) -> None:
        """Fill `codes`; without act_order overwrite the grid as well."""
        if self.spec.act_order:
            self._round_in_parts(0, len(self.columns))
        else:
            width = group_width(self.spec.group_size, len(self.columns))
            self._each(_parts(0, len(self.columns), width), self._round_group)

    def _round_group(self, start: int, end: int) -> None:
        self._refresh(start, end)
        self._round_in_parts(start, end)

    def _round_in_parts(self, start: int, end: int) -> None:
        self._each(_parts(start, end, LEAF), self._round_one_by_one)

    def _each(self, parts: Sequence[Part], visit: Callable[[int, int], None]) -> None:
        """Visit the parts in turn, each with the errors of those before it carried to it, by halves of halves."""
        if len(parts) == 1:
            visit(*parts[0])
            return
        before, after = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        self._each(before, visit)
        first, last, to = before[-1][0], before[0][1], after[-1][0]
        self.moved[to:first].addmm_(self.factor.lower[first:last, to:first].T, self.moved[first:last])
        self._each(after, visit)

    def _round_one_by_one(self, start: int, end: int) -> None:
        groups = self.factor.order[start:end] // group_width(self.spec.group_size, len(self.columns))
        scales = self.grid.scale.T[groups].float()
        zeros = None if self.grid.zero is None else self.grid.zero.T[groups].float()
        for column in range(end - 1, start - 1, -1):
            moved, later = self.moved[column], slice(column + 1, end)
            moved.addmv_(self.moved[later].T, self.factor.lower[later, column])
            scale, zero = scales[column - start], None if zeros is None else zeros[column - start]
            codes = round_to_grid(moved, scale, zero, self.spec)
            self.codes[column] = codes
            torch.sub(self.columns[column], from_grid(codes, scale, zero), out=moved)

    def _refresh(self, start: int, end: int) -> None:
        """Find a group's grid anew, for the weights that would make good the errors so far if none were to follow."""
        if end == len(self.columns):
            return
        lower, carried = self.factor.lower[start:end, start:end], self.moved[start:end] - self.columns[start:end]
        carried = torch.linalg.solve_triangular(lower.T, carried, upper=True, unitriangular=True)
        importance = self.factor.importance[start:end]
        fresh = find_grid((self.columns[start:end] + carried).T, self.spec, importance=importance)
        group = (len(self.columns) - end) // group_width(self.spec.group_size, len(self.columns))
        self.grid.scale[:, group] = fresh.scale[:, 0]
        if self.grid.zero is not None and fresh.zero is not None:
            self.grid.zero[:, group] = fresh.zero[:, 0]


def _parts(start: int, end: int, width: int) -> list[Part]:
    """Parts of `width` columns, the last first; the final one may be short."""
    return [(max(last - width, start), last) for last in range(end, start, -width)]


def _checked(seen: Seen | None, weight: Tensor, name: str) -> Tensor:
    """The Hessian, if it is one of this weight's inputs."""
    hessian, columns = None if seen is None else seen.hessian, weight.shape[1]
    if hessian is None:
        raise CalibrationError(f"{name}: gptq needs the Hessian of its inputs; give calibration data, or use rtn")
    if tuple(hessian.shape) != (columns, columns):
        raise CalibrationError(f"{name}: the Hessian must be [{columns}, {columns}], found {list(hessian.shape)}")
    if not all(bool(extreme.isfinite()) for extreme in hessian.aminmax()):
        raise CalibrationError(f"{name}: the Hessian holds NaN or infinite values; calibration inputs are too large")
    return hessian.detach().to(weight)


def _factorize(hessian: Tensor, spec: IntegerBits, name: str) -> _Factor:
    """The factor of the damped Hessian; the damping grows tenfold while it is not positive definite.

    A zero on the diagonal (an input never seen) becomes the mean of the others.
    """
    diagonal = hessian.diagonal().double()
    mean = diagonal[diagonal > 0].mean() if bool((diagonal > 0).any()) else diagonal.new_ones(())
    # In parts of the mean, so that neither large nor small inputs leave the range of float32.
    diagonal = (diagonal / mean).where(diagonal > 0, 1.0).float()
    order = torch.argsort(diagonal, descending=True, stable=True) if spec.act_order else torch.arange(len(hessian))
    order = order.to(hessian.device).flip(0)
    damping = spec.damping
    for _ in range(DAMPING_RETRIES):
        lower = _cholesky(hessian, order, diagonal + damping, float(mean))
        if lower is not None:
            roots = lower.diagonal().clone()
            return _Factor(order, lower.div_(roots), roots.square())
        damping *= 10
    raise CalibrationError(
        f"{name}: the Hessian is not positive definite, even with damping of {damping / 10:g} times its mean diagonal; "
        "calibrate on more samples, or use rtn"
    )


def _cholesky(hessian: Tensor, order: Tensor, diagonal: Tensor, unit: float) -> Tensor | None:
    """The factor L of (H / unit) in the given order with another diagonal; None if it is not positive definite.

    Takes one more [in, in], which becomes L; what is above its diagonal is left as it is.
    """
    matrix = torch.empty_like(hessian)
    for start in range(0, len(order), GATHER):
        rows = slice(start, start + GATHER)
        matrix[rows] = hessian[order[rows]][:, order] / unit
    matrix.diagonal().copy_(diagonal[order])
    # LAPACK stores columns: for the transposed view it can work in place.
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix.T, out=(matrix.T, failed))
    return None if int(failed) else matrix.T
