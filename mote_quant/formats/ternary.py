"""Ternary weights: codes in {-1, 0, +1} at 2 or 1.6 bits, with one scale per tensor, output channel or group."""

from __future__ import annotations

from mote_quant.formats.scaled import Packing, ScaledFormat
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary import packing

PAPER_BITS = 2.0
"""The paper counts a ternary weight at 2 bits, however it is packed."""

_PACKINGS = {
    "2bit": Packing(4, packing.pack_2bit, packing.unpack_2bit, packing.check_2bit),
    "base3": Packing(5, packing.pack_base3, packing.unpack_base3, packing.check_base3),
}


def ternary_format(spec: TernaryBits) -> ScaledFormat:
    """The format that stores a ternary spec."""
    return ScaledFormat(spec, _PACKINGS[spec.packing], PAPER_BITS)
