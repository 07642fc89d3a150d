"""Speed: operations on packed weights, each with a torch reference."""

from mote_quant.kernels.packed_linear import PackedLinear

__all__ = ["PackedLinear"]
