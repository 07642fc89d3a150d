"""Taking packed codes apart in registers: device functions shared by all kernels.

A byte holds `8 / bits` digits of `bits` bits, the first column lowest; `bits` 0 is base 3: five digits, the byte being
their fraction in 256ths, from which tripling drives the digits out one by one, the first column first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mote_quant.kernels.triton.tuning import INTERPRETED

BASE3 = 0
"""What stands for base 3 where bits of a digit are asked for."""


def digits_per_byte(bits: int) -> int:
    """Columns in a byte."""
    return 5 if bits == BASE3 else 8 // bits


# Four bytes in a register at once, where the compiler would take each by itself: $2 -> digits $0, what is left $1.
TAKE_TWO_BITS = tl.constexpr("""
    and.b32 $0, $2, 0x03030303;
    shr.u32 $1, $2, 2;
""")
TAKE_BASE3 = tl.constexpr("""{
    .reg .b32 even, odd, high;
    shr.u32 odd, $2, 8;
    and.b32 even, $2, 0x00ff00ff;
    and.b32 odd, odd, 0x00ff00ff;
    mul.lo.u32 even, even, 3;
    mul.lo.u32 odd, odd, 3;
    shr.u32 high, even, 8;
    and.b32 high, high, 0x00030003;
    and.b32 $0, odd, 0x03000300;
    or.b32 $0, $0, high;
    and.b32 even, even, 0x00ff00ff;
    and.b32 odd, odd, 0x00ff00ff;
    shl.b32 odd, odd, 8;
    or.b32 $1, even, odd;
}""")


@triton.jit
def take_byte_digit(packed: tl.tensor, bits: tl.constexpr) -> tl.tensor:
    """As `take_digit` for uint8 -> int8, with `bits` 0 or 2; there are no more digits to take than a byte has."""
    if INTERPRETED:
        digit, rest = take_digit(packed.to(tl.int16), bits)
        return digit.to(tl.int8), rest.to(tl.uint8)
    else:
        return tl.inline_asm_elementwise(
            TAKE_BASE3 if bits == 0 else TAKE_TWO_BITS, "=&r,=&r,r", [packed],
            dtype=(tl.int8, tl.uint8), is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def take_digit(packed: tl.tensor, bits: tl.constexpr) -> tl.tensor:
    """(the next digit of each byte, what is left of it); `packed` are integers of at least 16 bits, below 256."""
    if bits == 0:
        tripled = packed * 3
        return tripled >> 8, tripled & 255
    else:
        return packed & ((1 << bits) - 1), packed >> bits


@triton.jit
def take_digits(packed: tl.tensor, bits: tl.constexpr) -> tl.tensor:
    """As `take_digit` for four bytes at once in each int32; `bits` is 0 or 2. The digits come as four bytes."""
    if bits == 0:
        # Two bytes to a half word each, where three times a byte has room.
        even = (packed & 0x00FF00FF) * 3
        odd = ((packed >> 8) & 0x00FF00FF) * 3
        digits = ((even >> 8) & 0x00030003) | (odd & 0x03000300)
        return digits, (even & 0x00FF00FF) | ((odd & 0x00FF00FF) << 8)
    else:
        return packed & 0x03030303, packed >> 2


@triton.jit
def dot4(digits: tl.tensor, values: tl.tensor, total: tl.tensor) -> tl.tensor:
    """`total` + the product of four unsigned bytes with four signed ones, all int32."""
    if INTERPRETED:
        for byte in tl.static_range(4):
            total += ((digits >> (8 * byte)) & 255) * ((values << (24 - 8 * byte)) >> 24)
        return total
    else:
        return tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [digits, values, total], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def float_dot(codes: tl.tensor, values: tl.tensor, total: tl.tensor) -> tl.tensor:
    """`total` (float32) + codes @ values, of any floating-point type."""
    if INTERPRETED:
        # The interpreter takes bfloat16 for the integers that it keeps it in.
        return tl.dot(codes.to(tl.float32), values.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(codes, values, total, input_precision="ieee")
