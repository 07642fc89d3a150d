"""One little-endian bit packer for every integer width up to 8 bits.

The unit is the smallest run of codes that fills whole bytes: 1 code of 8 bits, 2 of 4, 8 of 3 (three bytes), 4 of 2.
A unit is the number sum(code_i << (bits * i)), stored lowest byte first; missing codes of a row's last unit are 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import FormatError


def packed_shape(rows: int, columns: int, bits: int) -> tuple[int, int, int]:
    """Shape [rows, units, bytes per unit] of the packed codes."""
    codes, width = _unit(bits)
    return rows, -(-columns // codes), width


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, columns], each below 2^bits -> uint8 [rows, units, bytes per unit]."""
    if codes.dtype != torch.uint8 or codes.dim() != 2:
        raise FormatError(f"codes to pack must be uint8 [rows, columns], found {codes.dtype} {list(codes.shape)}")
    if codes.numel() and int(codes.max()) >= 2**bits:
        raise FormatError(f"codes of {bits} bits must be below {2**bits}, found {int(codes.max())}")
    rows, units, width = packed_shape(len(codes), codes.shape[1], bits)
    per_unit, _ = _unit(bits)
    padded = F.pad(codes, (0, units * per_unit - codes.shape[1])).view(rows, units, per_unit)
    word = _word(width)
    number = (padded.to(word) << _steps(bits, per_unit, padded, word)).sum(-1, keepdim=True, dtype=word)
    return ((number >> _steps(8, width, padded, word)) & 255).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """uint8 [rows, units, bytes per unit] -> uint8 codes [rows, columns]."""
    expected = packed_shape(packed.shape[0] if packed.dim() else 0, columns, bits)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        found = f"{packed.dtype} {list(packed.shape)}"
        raise FormatError(f"{columns} columns packed in {bits} bits must be uint8 {list(expected)}, found {found}")
    per_unit, width = _unit(bits)
    word = _word(width)
    number = (
        (packed.to(word) << _steps(8, width, packed, word)).sum(-1, keepdim=True, dtype=word) if width > 1 else packed
    )
    codes = (number >> _steps(bits, per_unit, packed, word)).bitwise_and_(2**bits - 1)
    return codes.to(torch.uint8).flatten(1)[:, :columns]


def _unit(bits: int) -> tuple[int, int]:
    shared = math.gcd(8, bits)
    return 8 // shared, bits // shared


def _word(width: int) -> torch.dtype:
    return torch.uint8 if width == 1 else torch.int32 if width <= 3 else torch.int64


def _steps(step: int, count: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.arange(count, device=like.device).mul_(step).to(dtype)
