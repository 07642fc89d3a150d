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
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.formats.integer import INPUT_SCALE
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight
from mote_quant.steps.quantize.methods.clip import output_loss
from mote_quant.steps.quantize.methods.grid import Grid, group_errors, nearest_codes, search_grid, whole_grid

EXPONENTS = tuple(step / 20 for step in range(1, 20))
LIMIT = 1e4
"""The largest factor, and one over the smallest: well within float16, whatever the inputs."""


def awq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in] with the factors per input column that leave the least output error.

    Never worse, on the inputs seen, than rounding to nearest. The factor of a column that they never reach is 1.
    """
    values = finite_weight(weight, name)
    problem = _Problem(values, _checked(seen, values, name), spec, name)
    factors = min(_candidates(problem.inputs, spec), key=problem.lost_with)
    grid = problem.grid(factors)
    if spec.clip == "search":
        grid = min((grid, problem.clipped(factors)), key=lambda found: problem.lost(factors, found))
    codes = nearest_codes(values / factors.float(), grid, spec)
    return Codes(codes, grid.scale, grid.zero, {INPUT_SCALE: factors})


@dataclass(frozen=True)
class _Problem:
    """A float32 weight [out, in] and inputs [rows, in] on which its outputs are to be kept."""

    weight: Tensor
    inputs: Tensor
    spec: IntegerBits
    name: str

    def grid(self, factors: Tensor) -> Grid:
        """The grid of the weight divided by its factors (as they are stored). FormatError if a scale is too large."""
        return whole_grid(self._groups(factors), self.spec, self.name)

    def clipped(self, factors: Tensor) -> Grid:
        """The grid whose ranges lose least of each group's part of the outputs."""
        loss = output_loss(self.spec.group_size, self.inputs * factors.float())
        return search_grid(self._groups(factors), self.spec, loss, self.name)

    def lost_with(self, factors: Tensor) -> float:
        """The output error by rounding to nearest; infinite if the factors lead to scales that cannot be stored."""
        try:
            return self.lost(factors, self.grid(factors))
        except FormatError:
            return torch.inf

    def lost(self, factors: Tensor, grid: Grid) -> float:
        """The squared error of the outputs, summed over them all."""
        errors = join_groups(group_errors(self._groups(factors), grid, self.spec), self.weight.shape[1])
        return float((errors.mul_(factors.float()) @ self.inputs.T).square().sum())

    def _groups(self, factors: Tensor) -> Tensor:
        return split_groups(self.weight / factors.float(), self.spec.group_size)


def _candidates(inputs: Tensor, spec: IntegerBits) -> Iterator[Tensor]:
    """Factors [in] as they are stored: all 1 first, then powers of one over each column's mean input."""
    dtype = dtype_of(spec.scale_dtype)
    size = inputs.abs().mean(0) if len(inputs) else torch.zeros_like(inputs.sum(0))
    seen = size > 0
    yield torch.ones_like(size, dtype=dtype)
    if not bool(seen.any()):
        return
    logs = size[seen].log()
    logs -= (logs.amax() + logs.amin()) / 2
    for exponent in EXPONENTS:
        factors = torch.ones_like(size)
        factors[seen] = (-exponent * logs).exp().clamp(1 / LIMIT, LIMIT)
        yield factors.to(dtype)


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
