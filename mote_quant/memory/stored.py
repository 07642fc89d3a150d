"""What one packed weight takes."""

from __future__ import annotations

from mote_quant.kernels.packed_linear import PackedLinear


def stored_bits(packed: PackedLinear) -> float:
    """Stored bits a weight, scales and zero points included (the bias is not)."""
    size = sum(buffer.nbytes for buffer in packed.buffers(recurse=False))
    return 8 * size / max(packed.out_features * packed.in_features, 1)
