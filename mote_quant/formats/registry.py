"""Which format stores which spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mote_quant.errors import FormatError
from mote_quant.formats.base import Format
from mote_quant.formats.binary import binary_format
from mote_quant.formats.codebook import CodebookFormat
from mote_quant.formats.integer import IntegerFormat
from mote_quant.formats.ternary import ternary_format
from mote_quant.recipe.schema import BinaryBits, CodebookBits, IntegerBits, PackedBits, TernaryBits

FORMATS: Mapping[type, Callable[[Any], Format]] = {
    IntegerBits: IntegerFormat,
    CodebookBits: CodebookFormat,
    TernaryBits: ternary_format,
    BinaryBits: binary_format,
}


def format_for(spec: PackedBits) -> Format:
    """The format that stores a spec; FormatError for a spec whose weights are not packed."""
    try:
        return FORMATS[type(spec)](spec)
    except KeyError:
        raise FormatError(
            f"{spec!r} is not a packed format; packed formats are ternary, binary, int8 to int2, nf4 and fp4"
        ) from None
