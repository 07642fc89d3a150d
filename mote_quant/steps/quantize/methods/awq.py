"""AWQ (Lin et al., arXiv 2306.00978): columns that large inputs meet are enlarged before rounding, and lose less by it.

The factors are stored beside the codes and never folded into a norm, so nothing else that reads the same inputs (a
router, a ternary expert) is touched, and every linear layer gets factors of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError, FormatError
from mote_quant.formats.clip import output_loss
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.grid import Grid, group_errors, nearest_codes, search_grid, whole_grid
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.formats.integer import INPUT_SCALE
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight

EXPONENTS = tuple(step / 10 for step in range(10))
LIMIT = 1e4
"""The largest factor, and one over the smallest: well within float16, whatever the inputs."""
ROWS = 1024
"""Rows of a weight whose outputs are compared at a time: a bound on what is copied."""


def awq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in] with the factors per input column that leave the least output error.

    Never worse, on the inputs seen, than rounding to nearest. The factor of a column that they never reach is 1.
    """
    values = finite_weight(weight, name)
    problem = _Problem(values, _checked(seen, values, name), spec)
    # All 1 comes first, and `min` keeps the first of equals: also where every error overflows.
    factors = min(_candidates(problem), key=problem.lost)
    scaled = values / factors.float()
    groups = split_groups(scaled, spec.group_size)
    grid = whole_grid(groups, spec, name)
    if spec.clip == "search":
        loss = output_loss(spec.group_size, problem.inputs * factors.float())
        # What is best for each group alone need not be for their sum.
        grid = min(grid, search_grid(groups, spec, loss), key=lambda found: problem.lost(factors, found))
    return Codes(nearest_codes(scaled, grid, spec), grid.scale, grid.zero, {INPUT_SCALE: factors})


@dataclass(frozen=True)
class _Problem:
    """A float32 weight [out, in] and inputs [rows, in] for which its outputs are to be kept."""

    weight: Tensor
    inputs: Tensor
    spec: IntegerBits

    def lost(self, factors: Tensor, grid: Grid | None = None) -> float:
        """The squared error of all outputs, with whole ranges unless a grid is given.

        Infinite where the factors lead to scales that cannot be stored.
        """
        try:
            starts = range(0, len(self.weight), ROWS)
            return sum(self._lost(slice(start, start + ROWS), factors.float(), grid) for start in starts)
        except FormatError:
            return torch.inf

    def _lost(self, rows: slice, factors: Tensor, grid: Grid | None) -> float:
        groups = split_groups(self.weight[rows] / factors, self.spec.group_size)
        errors = group_errors(groups, whole_grid(groups, self.spec) if grid is None else grid[rows], self.spec)
        outputs = join_groups(errors, len(factors)).mul_(factors) @ self.inputs.T
        return float(outputs.square_().sum())


def _candidates(problem: _Problem) -> Iterator[Tensor]:
    """Factors [in] as they are stored: all 1, then powers of one over the inputs, and these with the weights' shape.

    The second kind also makes up for columns that are small in their groups. It is llm-compressor's; on
    tinystories-656k, int4 in groups of 64, it lowers the KL divergence of the logits by 3 %, clip search or not.
    """
    inputs, dtype = problem.inputs, dtype_of(problem.spec.scale_dtype)
    size = inputs.abs().sum(0, dtype=torch.float64)
    seen = size > 0
    yield torch.ones_like(size, dtype=dtype)
    if not bool(seen.any()):
        return
    by_input, by_weight = size[seen].log().float(), _fill(problem)[seen].log()
    for exponent in EXPONENTS[1:]:
        yield _factors(-exponent * by_input, seen, dtype)
    for exponent in EXPONENTS:
        yield _factors((1 - exponent) * by_weight - exponent * by_input, seen, dtype)


def _factors(logs: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The logarithms of the factors of the columns seen -> all factors [in], as much above 1 as below."""
    factors = torch.ones_like(seen, dtype=torch.float32)
    factors[seen] = (logs - (logs.amax() + logs.amin()) / 2).exp().clamp(1 / LIMIT, LIMIT)
    return factors.to(dtype)


def _fill(problem: _Problem) -> Tensor:
    """How much of its groups' ranges each column fills on average: [in], from above 0 to 1."""
    total = torch.zeros_like(problem.weight[:1].sum(0))
    for rows in torch.split(problem.weight, ROWS):
        sizes = split_groups(rows.abs(), problem.spec.group_size)
        sizes /= sizes.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        total += join_groups(sizes, len(total)).sum(0)
    return (total / max(1, len(problem.weight))).clamp(min=1 / LIMIT)


def _checked(seen: Seen | None, weight: Tensor, name: str) -> Tensor:
    """The inputs, if they are some of this weight's."""
    inputs, columns = None if seen is None else seen.inputs, weight.shape[1]
    if inputs is None:
        raise CalibrationError(f"{name}: awq needs some of its inputs; give calibration data, or use rtn")
    if inputs.dim() != 2 or inputs.shape[1] != columns:
        raise CalibrationError(f"{name}: the inputs must be [tokens, {columns}], found {list(inputs.shape)}")
    if not bool(inputs.isfinite().all()):
        raise CalibrationError(f"{name}: a calibration input holds NaN or infinite values")
    return inputs.detach().to(weight)
