"""Ternary weights, with one scale per tensor or output channel, times int8 or floating-point activations.

int8 activations are summed in int32, exactly: the digits are the codes plus 1, so a token's sum is taken off at the
end. Many tokens go through `tl.dot` in tiles, few through rows that are read once for each, four bytes to a dp4a.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from mote_quant.formats.scaled import ScaledFormat
from mote_quant.kernels.triton.activation import Activations, arranged
from mote_quant.kernels.triton.digits import (
    BASE3,
    digits_per_byte,
    dot4,
    float_dot,
    take_byte_digit,
    take_digit,
    take_digits,
)
from mote_quant.kernels.triton.tuning import DECODE_TOKENS, ROWS, TILES, bucket, tuned
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import TernaryBits

BITS = {"2bit": 2, "base3": BASE3}
"""What kernels are told of a packing."""


@triton.jit
def tile_sums(
    starts: tl.tensor, width: tl.tensor, planes: tl.tensor, tokens: tl.tensor, plane: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, block_bytes: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """[block_rows, block_tokens]: int32 sums of digit * activation, or float32 ones of code * activation.

    `starts` [block_rows] are pointers to the rows.
    """
    total = tl.zeros((block_rows, block_tokens), dtype=tl.int32 if integer else tl.float32)
    for start in range(0, width, block_bytes):
        place = start + tl.arange(0, block_bytes)
        packed = tl.load(starts[:, None] + place[None, :], mask=(place < width)[None, :], other=0)
        packed = packed if integer else packed.to(tl.int16)
        at_values = planes + tokens[None, :] * (digits * plane) + place[:, None]
        for digit_plane in tl.static_range(digits):
            values = tl.load(at_values + digit_plane * plane, mask=(place < plane)[:, None], other=0)
            if integer:
                digit, packed = take_byte_digit(packed, bits)
                total = tl.dot(digit, values, total, out_dtype=tl.int32)
            else:
                digit, packed = take_digit(packed, bits)
                total = float_dot((digit - 1).to(tl.float32).to(values.dtype), values, total)
    return total


@triton.jit
def row_sums(
    starts: tl.tensor, width: tl.tensor, values: tl.tensor, plane: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, words: tl.constexpr,
    block_rows: tl.constexpr, block: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """[block_rows]: as `tile_sums` for one token. With `words` starts, width, values and plane count int32."""
    total = tl.zeros((block_rows, block), dtype=tl.int32 if integer else tl.float32)
    for start in range(0, width, block):
        place = start + tl.arange(0, block)
        # The same for all rows, but loaded as the bytes are: otherwise it would pass through shared memory.
        at_values = tl.broadcast_to(values + place[None, :], (block_rows, block))
        within = (place < width)[None, :]
        packed = tl.load(starts[:, None] + place[None, :], mask=within, other=0).to(tl.int32)
        for digit_plane in tl.static_range(digits):
            value = tl.load(at_values + digit_plane * plane, mask=within, other=0)
            if words:
                digit, packed = take_digits(packed, bits)
                total = dot4(digit, value, total)
            else:
                digit, packed = take_digit(packed, bits)
                total += digit * value.to(tl.int32) if integer else (digit - 1).to(tl.float32) * value.to(tl.float32)
    return tl.sum(total, 1)


@triton.jit
def in_units_of_x(
    total: tl.tensor, scales: tl.tensor, sums: tl.tensor, tokens: tl.tensor, integer: tl.constexpr
) -> tl.tensor:
    """float32 sums of code * activation, of what `tile_sums` or `row_sums` returned for these tokens."""
    if integer:
        return (total - tl.load(sums + tokens)).to(tl.float32) * tl.load(scales + tokens)
    else:
        return total


@tuned(TILES, "rows", "width", "bucket", "bits")
@triton.jit
def multiply_tiles(
    weight: tl.tensor, weight_scale: tl.tensor, scale_stride: tl.tensor, planes: tl.tensor, scales: tl.tensor,
    sums: tl.tensor, bias: tl.tensor, out: tl.tensor,
    rows: tl.tensor, width: tl.tensor, plane: tl.tensor, tokens: tl.tensor, bucket: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of the output [tokens, rows]."""
    token = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    inside = (row < rows)[:, None] & (token < tokens)[None, :]
    row = tl.minimum(row, rows - 1).to(tl.int64)
    token = tl.minimum(token, tokens - 1).to(tl.int64)
    total = tile_sums(
        weight + row * width, width, planes, token, plane, bits, digits, integer, block_rows, block_tokens, block_bytes
    )
    value = in_units_of_x(total, scales, sums, token[None, :], integer)
    value *= tl.load(weight_scale + row * scale_stride).to(tl.float32)[:, None]
    if bias is not None:
        value += tl.load(bias + row).to(tl.float32)[:, None]
    tl.store(out + token[None, :] * rows + row[:, None], value.to(out.dtype.element_ty), mask=inside)


@tuned(ROWS, "rows", "width", "bucket", "bits")
@triton.jit
def multiply_rows(
    weight: tl.tensor, weight_scale: tl.tensor, scale_stride: tl.tensor, planes: tl.tensor, scales: tl.tensor,
    sums: tl.tensor, bias: tl.tensor, out: tl.tensor,
    rows: tl.tensor, width: tl.tensor, plane: tl.tensor, bucket: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, words: tl.constexpr,
    block_rows: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A run of one token's outputs."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    token = tl.program_id(1).to(tl.int64)
    inside = row < rows
    row = tl.minimum(row, rows - 1).to(tl.int64)
    values = planes + token * digits * plane
    starts = weight + row * width
    total = row_sums(starts, width, values, plane, bits, digits, integer, words, block_rows, block_bytes)
    value = in_units_of_x(total, scales, sums, token, integer)
    value *= tl.load(weight_scale + row * scale_stride).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + row).to(tl.float32)
    tl.store(out + token * rows + row, value.to(out.dtype.element_ty), mask=inside)


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out] in the type of x; rounded to int8 per token where the spec asks for it."""
    spec = cast(TernaryBits, cast(ScaledFormat, weight.format).spec)
    flat = x.reshape(-1, weight.shape[1])
    out = flat.new_empty(len(flat), weight.shape[0])
    bits, integer = BITS[spec.packing], spec.activations == "int8"
    launch = _launch_rows if len(flat) <= DECODE_TOKENS else _launch_tiles
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        given = arranged(flat, digits_per_byte(bits), torch.int8 if integer else None)
        launch(
            weight.tensors["weight"].flatten(1), given, out, bits=bits, digits=digits_per_byte(bits), integer=integer,
            weight_scale=weight.tensors["weight_scale"], scale_stride=int(spec.granularity != "tensor"), bias=bias,
        )  # fmt: skip
    return out.view(*x.shape[:-1], -1)


def words_or_bytes(stored: Tensor, given: Activations) -> dict[str, Any]:
    """The arguments of a kernel that reads rows: four bytes at a time where all rows start at a multiple of four."""
    width = stored.shape[-1]
    if given.sums is None or width % 4 or stored.data_ptr() % 4:
        return {"weight": stored, "width": width, "planes": given.planes, "plane": given.plane, "words": False}
    weight, planes = stored.view(torch.int32), given.planes.view(torch.int32)
    return {"weight": weight, "width": width // 4, "planes": planes, "plane": given.plane // 4, "words": True}


def _launch_rows(stored: Tensor, given: Activations, out: Tensor, **common: Any) -> None:
    tokens, rows = out.shape
    multiply_rows[lambda sizes: (triton.cdiv(rows, sizes["block_rows"]), tokens)](
        **words_or_bytes(stored, given), **common, scales=given.scales, sums=given.sums, out=out, rows=rows,
        bucket=bucket(tokens),
    )  # fmt: skip


def _launch_tiles(stored: Tensor, given: Activations, out: Tensor, **common: Any) -> None:
    tokens, rows = out.shape
    multiply_tiles[
        lambda sizes: (triton.cdiv(tokens, sizes["block_tokens"]), triton.cdiv(rows, sizes["block_rows"]))
    ](
        weight=stored, width=stored.shape[1], planes=given.planes, plane=given.plane, **common, scales=given.scales,
        sums=given.sums, out=out, rows=rows, tokens=tokens, bucket=bucket(tokens),
    )  # fmt: skip
