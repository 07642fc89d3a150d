"""What is stored: packed formats on plain tensors, with their layouts known beforehand."""

from mote_quant.formats.base import Codes, Format, TensorSpec
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.registry import format_for

__all__ = ["Codes", "Format", "TensorSpec", "dtype_of", "format_for"]
