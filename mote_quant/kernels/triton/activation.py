"""Activations as the kernels read them: column c of a token at plane c mod n, place c div n, n digits to a byte.

The digits that one shift takes from neighbouring bytes then meet neighbouring activations, and nothing is permuted.
Planes are zero where there are no columns, so the digits that fill a row's last byte count for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mote_quant.ternary.activation import EPSILON, LIMIT

_ALIGNMENT = 16
_BLOCK = 1024
_EPSILON = tl.constexpr(EPSILON)
_LIMIT = tl.constexpr(float(LIMIT))
# Floats of this size have no fractional bits: to add and subtract it rounds half to even.
_ROUNDER = tl.constexpr(1.5 * 2**23)


@dataclass(frozen=True)
class Activations:
    """`planes` [tokens, n, bytes of a row and some more]; of int8 codes also `scales` and `sums` [tokens]."""

    planes: Tensor
    scales: Tensor | None = None
    sums: Tensor | None = None

    @property
    def plane(self) -> int:
        """Elements of one plane."""
        return self.planes.shape[-1]


@triton.jit
def _scale(x: tl.tensor, columns: tl.tensor, block: tl.constexpr) -> tl.tensor:
    largest = tl.zeros((block,), dtype=tl.float32)
    poison = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, columns, block):
        column = start + tl.arange(0, block)
        value = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
        # NaN for NaN and for infinity, which a maximum would hide.
        poison += value * 0.0
    return tl.div_rn(tl.maximum(tl.max(largest, 0), _EPSILON), _LIMIT) + tl.sum(poison, 0)


@triton.jit
def _code(value: tl.tensor, scale: tl.tensor) -> tl.tensor:
    rounded = tl.div_rn(value, tl.zeros_like(value) + scale) + _ROUNDER - _ROUNDER
    within = tl.minimum(tl.maximum(rounded, -_LIMIT), _LIMIT)
    return tl.where(rounded == rounded, within, 0.0)


@triton.jit
def lay_out(
    x: tl.tensor, factors: tl.tensor, planes: tl.tensor, scales: tl.tensor, sums: tl.tensor, columns: tl.tensor,
    plane: tl.tensor, stride: tl.tensor,
    digits: tl.constexpr, quantize: tl.constexpr, block: tl.constexpr,
) -> None:  # fmt: skip
    """One token: its planes, times a factor per column if there are factors, as int8 codes if `quantize`."""
    token = tl.program_id(0).to(tl.int64)
    x += token * stride
    planes += token * digits * plane
    scale = _scale(x, columns, block) if quantize else 1.0
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(0, plane, block):
        place = start + tl.arange(0, block)
        for digit in tl.static_range(digits):
            column = place * digits + digit
            value = tl.load(x + column, mask=column < columns, other=0.0).to(tl.float32)
            if factors is not None:
                value *= tl.load(factors + column, mask=column < columns, other=0.0).to(tl.float32)
            if quantize:
                value = _code(value, scale)
                total += value
            tl.store(planes + digit * plane + place, value.to(planes.dtype.element_ty), mask=place < plane)
    if quantize:
        tl.store(scales + token, scale)
        tl.store(sums + token, tl.sum(total.to(tl.int32), 0))


def arranged(x: Tensor, digits: int, codes: torch.dtype | None = None, factors: Tensor | None = None) -> Activations:
    """x [tokens, in] in planes, `digits` of them: as it is, or as int8 codes per token stored in the type `codes`."""
    tokens, columns = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    places = -(-columns // digits)
    plane = -(-places // _ALIGNMENT) * _ALIGNMENT
    planes = torch.empty(tokens, digits, plane, dtype=codes or x.dtype, device=x.device)
    quantized = codes is not None
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device) if quantized else None
    sums = torch.empty(tokens, dtype=torch.int32, device=x.device) if quantized else None
    block = min(_BLOCK, triton.next_power_of_2(plane))
    lay_out[(tokens,)](x, factors, planes, scales, sums, columns, plane, x.stride(0), digits, quantized, block)
    return Activations(planes, scales, sums)
