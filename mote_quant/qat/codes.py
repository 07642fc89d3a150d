"""From a latent weight to its codes and to what they stand for, for every format that is trained.

Integers are rounded by the functions of rtn (formats/grid.py), the others by those of ternary/quantize.py: codes in
training, in the packed layer and after a reload are the same.
"""

from __future__ import annotations

from torch import Tensor

from mote_quant.formats.base import Codes
from mote_quant.formats.grid import find_grid, nearest_codes, nearest_values
from mote_quant.recipe.schema import IntegerBits, QatBits, ScaledBits
from mote_quant.ternary.quantize import absmean_scale, scaled_codes, scaled_values, storable_scale


def find_codes(weight: Tensor, spec: QatBits, learned: Tensor | None = None) -> Codes:
    """The codes of a weight [out, in]; `learned` is its trained scale, if it has one."""
    if isinstance(spec, IntegerBits):
        values = weight.detach().float()
        grid = find_grid(values, spec)
        return Codes(nearest_codes(values, grid, spec), grid.scale, grid.zero)
    scale = scale_of(weight, spec, learned)
    return Codes(scaled_codes(weight, scale, spec), scale)


def rounded_weight(weight: Tensor, spec: QatBits, learned: Tensor | None = None) -> Tensor:
    """What those codes stand for, float32 [out, in]: the weight that the packed layer multiplies by."""
    if isinstance(spec, IntegerBits):
        values = weight.detach().float()
        return nearest_values(values, find_grid(values, spec), spec)
    return scaled_values(weight, scale_of(weight, spec, learned), spec)


def scale_of(weight: Tensor, spec: ScaledBits, learned: Tensor | None) -> Tensor:
    """The scale as it is stored: the trained one, or the mean absolute weight."""
    return absmean_scale(weight, spec) if learned is None else storable_scale(learned, spec)
