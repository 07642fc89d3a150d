"""Ternary codes as bytes: four codes a byte (2 bits each) or five codes a byte (base 3). Pure functions, row by row.

A code c in {-1, 0, +1} is stored as the digit c + 1. Rows start on a byte; the columns missing in a row's last byte
hold code 0.

2 bits: the first column is the lowest digit, the byte is sum(digit_i * 4^i).
Base 3: the first column is the highest digit of a number b in 0..242, and the byte is the fraction b / 243 in 1/256,
rounded up. Three times the byte is then the next digit (above 255) and the fraction that is left (below), so that
digits come out by multiplication only, and a kernel need not even take them out (`kernels/cpu/src`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import FormatError

CODES_PER_BYTE = {"2bit": 4, "base3": 5}
_BASE3_VALUES = 3**5


def pack_2bit(codes: Tensor) -> Tensor:
    """int8 codes [rows, columns] -> uint8 [rows, ceil(columns / 4)]."""
    return _join(codes, powers=(1, 4, 16, 64))


def unpack_2bit(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 4)] -> int8 codes [rows, columns]. Values are not checked: see `check_2bit`."""
    _check_packed(packed, columns, per_byte=4)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    digits = packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(3)
    return digits.flatten(1)[:, :columns].view(torch.int8) - 1


def pack_base3(codes: Tensor) -> Tensor:
    """int8 codes [rows, columns] -> uint8 [rows, ceil(columns / 5)], 243 different bytes."""
    numbers = _join(codes, powers=(81, 27, 9, 3, 1))
    fractions = torch.arange(_BASE3_VALUES, dtype=torch.int32, device=codes.device).mul_(256)
    rounded_up = fractions.add_(_BASE3_VALUES - 1).div_(_BASE3_VALUES, rounding_mode="floor").to(torch.uint8)
    return rounded_up.index_select(0, numbers.flatten().int()).view_as(numbers)


def unpack_base3(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, ceil(columns / 5)] -> int8 codes [rows, columns]. Values are not checked: see `check_base3`."""
    _check_packed(packed, columns, per_byte=5)
    codes = _base3_codes(packed.device).index_select(0, packed.flatten().int()).view(len(packed), 5 * packed.shape[1])
    return codes[:, :columns].contiguous()


def check_2bit(packed: Tensor) -> None:
    """Raises FormatError where two bits hold 3, which is no ternary code."""
    if bool((packed & (packed >> 1) & 0b01010101).any()):
        raise FormatError("packed 2-bit ternary data holds the digit 3; valid digits are 0, 1, 2. The data is damaged")


def check_base3(packed: Tensor) -> None:
    """Raises FormatError for one of the 13 bytes that five base-3 digits never make."""
    # What five digits leave of a fraction that was rounded up by less than 1/256 is below 243/256.
    wrong = packed[packed * _BASE3_VALUES >= _BASE3_VALUES]
    if wrong.numel():
        raise FormatError(
            f"packed base-3 ternary data holds the byte {int(wrong[0])}, which five ternary codes never make. "
            "The data is damaged"
        )


def _base3_codes(device: torch.device) -> Tensor:
    """int8 [256, 5]: the codes of every byte."""
    fractions = torch.arange(256, dtype=torch.int32, device=device)
    tripled = [fractions.mul(3**place).remainder_(256).mul_(3) for place in range(5)]
    return torch.stack(tripled, dim=1).bitwise_right_shift_(8).sub_(1).to(torch.int8)


def _join(codes: Tensor, powers: tuple[int, ...]) -> Tensor:
    """uint8 [rows, bytes]: sum(digit_i * power_i) over the digits of each byte."""
    _check_codes(codes)
    rows, columns = codes.shape
    per_byte = len(powers)
    digits = F.pad(codes + 1, (0, -columns % per_byte), value=1).view(torch.uint8)
    grouped = digits.view(rows, digits.shape[1] // per_byte, per_byte)
    weights = torch.tensor(powers, dtype=torch.uint8, device=codes.device)
    return (grouped * weights).sum(-1, dtype=torch.uint8)


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
