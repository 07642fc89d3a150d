"""Ternary codes as bytes: four codes a byte (2 bits each) or five codes a byte (base 3). Pure functions, row by row.

A code c in {-1, 0, +1} is stored as the digit c + 1. Within a byte the first column is the lowest digit: the byte is
sum(digit_i * 4^i) or sum(digit_i * 3^i). Rows start on a byte; the columns missing in a row's last byte hold code 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import FormatError

CODES_PER_BYTE = {"2bit": 4, "base3": 5}
_LARGEST_BASE3_BYTE = 3**5 - 1


def pack_2bit(codes: Tensor) -> Tensor:
    """int8 codes [rows, columns] -> uint8 [rows, ceil(columns / 4)]."""
    return _pack(codes, per_byte=4, base=4)


def unpack_2bit(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 4)] -> int8 codes [rows, columns]. Values are not checked: see `check_2bit`."""
    _check_packed(packed, columns, per_byte=4)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    digits = packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(3)
    return digits.flatten(1)[:, :columns].view(torch.int8) - 1


def pack_base3(codes: Tensor) -> Tensor:
    """int8 codes [rows, columns] -> uint8 [rows, ceil(columns / 5)], bytes 0..242."""
    return _pack(codes, per_byte=5, base=3)


def unpack_base3(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 5)] -> int8 codes [rows, columns]. Values are not checked: see `check_base3`."""
    _check_packed(packed, columns, per_byte=5)
    values = torch.arange(256, dtype=torch.int16, device=packed.device).unsqueeze(1)
    table = values.div(_powers(3, 5, packed).short(), rounding_mode="floor").remainder_(3).sub_(1).to(torch.int8)
    digits = table.index_select(0, packed.flatten().int()).view(len(packed), 5 * packed.shape[1])
    return digits[:, :columns].contiguous()


def check_2bit(packed: Tensor) -> None:
    """Raises FormatError where two bits hold 3, which is no ternary code."""
    if bool((packed & (packed >> 1) & 0b01010101).any()):
        raise FormatError("packed 2-bit ternary data holds the digit 3; valid digits are 0, 1, 2. The data is damaged")


def check_base3(packed: Tensor) -> None:
    """Raises FormatError for a byte above 242, which five base-3 digits never make."""
    if packed.numel() and (largest := int(packed.max())) > _LARGEST_BASE3_BYTE:
        raise FormatError(
            f"packed base-3 ternary data holds the byte {largest}; valid bytes are 0 to 242. The data is damaged"
        )


def _pack(codes: Tensor, per_byte: int, base: int) -> Tensor:
    _check_codes(codes)
    rows, columns = codes.shape
    digits = F.pad(codes + 1, (0, -columns % per_byte), value=1).view(torch.uint8)
    grouped = digits.view(rows, digits.shape[1] // per_byte, per_byte)
    return (grouped * _powers(base, per_byte, codes)).sum(-1, dtype=torch.uint8)


def _powers(base: int, count: int, like: Tensor) -> Tensor:
    return torch.tensor([base**i for i in range(count)], dtype=torch.uint8, device=like.device)


def _check_codes(codes: Tensor) -> None:
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise FormatError(f"ternary codes must be int8 [rows, columns], found {codes.dtype} {list(codes.shape)}")
    if codes.numel() and (int(codes.min()) < -1 or int(codes.max()) > 1):
        raise FormatError(f"ternary codes must be -1, 0 or 1, found {int(codes.min())} to {int(codes.max())}")


def _check_packed(packed: Tensor, columns: int, per_byte: int) -> None:
    width = -(-columns // per_byte)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
        found = f"{packed.dtype} {list(packed.shape)}"
        raise FormatError(f"{columns} packed ternary columns must be uint8 [rows, {width}], found {found}")
