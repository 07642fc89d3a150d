"""Binary weights: codes in {-1, +1} at 1 bit, with one scale per tensor, output channel or group.

A code c is stored as the bit (c + 1) / 2, eight codes a byte, the first column in the lowest bit; the bits missing in a
row's last byte are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.bits import pack_bits, unpack_bits
from mote_quant.formats.scaled import Packing, ScaledFormat
from mote_quant.recipe.schema import BinaryBits


def pack_binary(codes: Tensor) -> Tensor:
    """int8 codes [rows, columns] -> uint8 [rows, ceil(columns / 8)]; FormatError for codes other than -1 and 1."""
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise FormatError(f"binary codes must be int8 [rows, columns], found {codes.dtype} {list(codes.shape)}")
    if not bool((codes.abs() == 1).all()):
        raise FormatError(f"binary codes must be -1 or 1, found {sorted(set(codes.flatten().tolist()))}")
    return pack_bits(codes.gt(0).to(torch.uint8), 1).squeeze(-1)


def unpack_binary(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 8)] -> int8 codes [rows, columns]."""
    return unpack_bits(packed.unsqueeze(-1), 1, columns).view(torch.int8) * 2 - 1


def any_byte(packed: Tensor) -> None:
    """Nothing to check: every byte is eight codes."""


def binary_format(spec: BinaryBits) -> ScaledFormat:
    """The format that stores a binary spec."""
    return ScaledFormat(spec, Packing(8, pack_binary, unpack_binary, any_byte), 1.0)
