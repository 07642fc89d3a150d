"""Round to nearest: every weight to the closest point of its group's grid. Needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, finite_weight
from mote_quant.steps.quantize.methods.grid import find_grid, round_to_grid


def rtn(weight: Tensor, spec: IntegerBits, hessian: Tensor | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in], computed in float32; the Hessian is not used."""
    values = finite_weight(weight, name)
    grid = find_grid(values, spec, name)
    zero = None if grid.zero is None else grid.zero.unsqueeze(-1)
    codes = round_to_grid(split_groups(values, spec.group_size), grid.scale.unsqueeze(-1), zero, spec)
    return Codes(join_groups(codes, values.shape[1]).to(torch.int16), grid.scale, grid.zero)
