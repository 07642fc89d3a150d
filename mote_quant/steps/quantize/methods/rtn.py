"""Round to nearest: every weight to the closest point of its group's grid. Needs no data."""

from __future__ import annotations

from torch import Tensor

from mote_quant.formats.grid import find_grid, nearest_codes
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight


def rtn(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in], computed in float32; what calibration saw is not used."""
    values = finite_weight(weight, name)
    grid = find_grid(values, spec, name)
    return Codes(nearest_codes(values, grid, spec), grid.scale, grid.zero)
