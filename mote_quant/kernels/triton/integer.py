"""Codes with a scale, and maybe a zero point, for each group of columns, times floating-point activations.

A kernel goes over a row in runs of bytes that lie within one group: a run's codes are exact in any floating-point type,
its sum is scaled once. Integers of 8, 4 and 2 bits are read so, and ternary weights with a scale per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from mote_quant.formats.groups import group_width
from mote_quant.formats.integer import BITS as INTEGER_BITS
from mote_quant.formats.integer import INPUT_SCALE
from mote_quant.kernels.reference import rounds_input
from mote_quant.kernels.triton.activation import Activations, arranged
from mote_quant.kernels.triton.digits import digits_per_byte, float_dot, take_digit
from mote_quant.kernels.triton.ternary import BITS as TERNARY_BITS
from mote_quant.kernels.triton.tuning import DECODE_TOKENS, ROWS, RUN_TILES, bucket, tuned
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import IntegerBits, TernaryBits

_LONGEST_RUN = 64
_SHORTEST_RUN = 16
"""Bytes: `tl.dot` takes no fewer."""


@triton.jit
def _zero_point(
    zeros: tl.tensor, zero_width: tl.tensor, row: tl.tensor, group: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, offset: tl.constexpr, packed_zeros: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """float32: the digit that stands for 0 in a group of a row."""
    if zeros is None:
        return (row * 0 + group * 0 + offset).to(tl.float32)
    elif packed_zeros:
        byte = tl.load(zeros + row * zero_width + group // digits).to(tl.int32)
        return ((byte >> (group % digits * bits).to(tl.int32)) & ((1 << bits) - 1)).to(tl.float32)
    else:
        return tl.load(zeros + row * zero_width + group).to(tl.float32)


@tuned(RUN_TILES, "rows", "width", "bucket", "bits")
@triton.jit
def multiply_tiles(
    weight: tl.tensor, weight_scale: tl.tensor, zeros: tl.tensor, planes: tl.tensor, scales: tl.tensor,
    bias: tl.tensor, out: tl.tensor, rows: tl.tensor, width: tl.tensor, groups: tl.tensor, group_bytes: tl.tensor,
    zero_width: tl.tensor, plane: tl.tensor, tokens: tl.tensor, bucket: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, offset: tl.constexpr, packed_zeros: tl.constexpr, run: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of the output [tokens, rows]."""
    token = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    row = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    inside = (row < rows)[:, None] & (token < tokens)[None, :]
    row = tl.minimum(row, rows - 1).to(tl.int64)
    token = tl.minimum(token, tokens - 1).to(tl.int64)
    total = tl.zeros((block_rows, block_tokens), dtype=tl.float32)
    for start in range(0, width, run):
        group = start // group_bytes
        zero = _zero_point(zeros, zero_width, row, group, bits, digits, offset, packed_zeros)
        place = start + tl.arange(0, run)
        at = weight + row[:, None] * width + place[None, :]
        packed = tl.load(at, mask=(place < width)[None, :], other=0).to(tl.int16)
        at_values = planes + token[None, :] * (digits * plane) + place[:, None]
        part = tl.zeros((block_rows, block_tokens), dtype=tl.float32)
        for digit_plane in tl.static_range(digits):
            digit, packed = take_digit(packed, bits)
            values = tl.load(at_values + digit_plane * plane, mask=(place < plane)[:, None], other=0.0)
            part = float_dot((digit.to(tl.float32) - zero[:, None]).to(values.dtype), values, part)
        total += part * tl.load(weight_scale + row * groups + group).to(tl.float32)[:, None]
    if scales is not None:
        total *= tl.load(scales + token)[None, :]
    if bias is not None:
        total += tl.load(bias + row).to(tl.float32)[:, None]
    tl.store(out + token[None, :] * rows + row[:, None], total.to(out.dtype.element_ty), mask=inside)


@tuned(ROWS, "rows", "width", "bucket", "bits")
@triton.jit
def multiply_rows(
    weight: tl.tensor, weight_scale: tl.tensor, zeros: tl.tensor, planes: tl.tensor, scales: tl.tensor,
    bias: tl.tensor, out: tl.tensor, rows: tl.tensor, width: tl.tensor, groups: tl.tensor, group_bytes: tl.tensor,
    zero_width: tl.tensor, plane: tl.tensor, bucket: tl.tensor,
    bits: tl.constexpr, digits: tl.constexpr, offset: tl.constexpr, packed_zeros: tl.constexpr, run: tl.constexpr,
    block_rows: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A stretch of one token's outputs: several rows and several runs of each at a time."""
    runs: tl.constexpr = block_bytes // run
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    inside = row < rows
    row = tl.minimum(row, rows - 1).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    values = planes + token * digits * plane
    total = tl.zeros((block_rows, runs, run), dtype=tl.float32)
    for start in range(0, width, block_bytes):
        first = start + tl.arange(0, runs) * run
        group = tl.minimum(first // group_bytes, groups - 1)[None, :]
        scale = tl.load(weight_scale + row[:, None] * groups + group).to(tl.float32)
        zero = _zero_point(zeros, zero_width, row[:, None], group, bits, digits, offset, packed_zeros)
        place = (first[:, None] + tl.arange(0, run)[None, :])[None, :, :]
        packed = tl.load(weight + row[:, None, None] * width + place, mask=place < width, other=0).to(tl.int32)
        # The same for all rows, but loaded as the bytes are: otherwise it would pass through shared memory.
        at_values = tl.broadcast_to(values + place, (block_rows, runs, run))
        part = tl.zeros((block_rows, runs, run), dtype=tl.float32)
        for digit_plane in tl.static_range(digits):
            digit, packed = take_digit(packed, bits)
            value = tl.load(at_values + digit_plane * plane, mask=place < width, other=0.0).to(tl.float32)
            part += (digit.to(tl.float32) - zero[:, :, None]) * value
        total += part * scale[:, :, None]
    result = tl.sum(tl.sum(total, 2), 1)
    if scales is not None:
        result *= tl.load(scales + token)
    if bias is not None:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(out + token * rows + row, result.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Reading:
    """How the bytes of a row are read: `bits` as in `digits`, `group` columns share a scale, `offset` stands for 0."""

    bits: int
    group: int
    offset: int = 0
    packed_zeros: bool = False

    @property
    def digits(self) -> int:
        """Columns in a byte."""
        return digits_per_byte(self.bits)

    def run(self, columns: int) -> int:
        """Bytes of the longest run that a kernel can take without leaving its group; 0 where a group splits a byte."""
        if self.group >= columns:
            return _LONGEST_RUN
        size, rest = divmod(self.group, self.digits)
        return 0 if rest else min(size & -size, _LONGEST_RUN)


def _read_integer(spec: IntegerBits, columns: int) -> Reading:
    bits = INTEGER_BITS[spec.format]
    offset = 2 ** (bits - 1) if spec.symmetric else 0
    return Reading(bits, group_width(spec.group_size, columns), offset, not spec.symmetric and not spec.float_zeros)


def _read_ternary(spec: TernaryBits, columns: int) -> Reading:
    return Reading(TERNARY_BITS[spec.packing], group_width(spec.group_size, columns), offset=1)


_READINGS: Mapping[type, Callable[[Any, int], Reading]] = {IntegerBits: _read_integer, TernaryBits: _read_ternary}


def supports(weight: PackedWeight) -> bool:
    """Whether digits fill bytes, and groups whole runs of them; of ternary weights, that they have groups."""
    spec = _spec(weight)
    if isinstance(spec, IntegerBits) and 8 % INTEGER_BITS[spec.format]:
        return False
    return _reading(weight).run(weight.shape[1]) >= _SHORTEST_RUN


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out] in the type of x; rounded to int8 per token where the spec asks for it."""
    rows, columns = weight.shape
    flat = x.reshape(-1, columns)
    out = flat.new_empty(len(flat), rows)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        # int8 codes are exact in the type of x.
        codes = x.dtype if rounds_input(weight) else None
        given = arranged(flat, _reading(weight).digits, codes, weight.tensors.get(INPUT_SCALE))
        _launch(weight, given, bias, out)
    return out.view(*x.shape[:-1], rows)


def _spec(weight: PackedWeight) -> IntegerBits | TernaryBits:
    return cast(IntegerBits | TernaryBits, cast(Any, weight.format).spec)


def _reading(weight: PackedWeight) -> Reading:
    spec = _spec(weight)
    return _READINGS[type(spec)](spec, weight.shape[1])


def _launch(weight: PackedWeight, given: Activations, bias: Tensor | None, out: Tensor) -> None:
    tokens, rows = out.shape
    reading = _reading(weight)
    stored, zeros = weight.tensors["weight"].flatten(1), weight.tensors.get("weight_zero")
    arguments = {
        "weight": stored, "weight_scale": weight.tensors["weight_scale"], "zeros": zeros, "planes": given.planes,
        "scales": given.scales, "bias": bias, "out": out, "rows": rows, "width": stored.shape[1],
        "groups": weight.tensors["weight_scale"].shape[1], "group_bytes": -(-reading.group // reading.digits),
        "zero_width": 0 if zeros is None else zeros.shape[1], "plane": given.plane, "bucket": bucket(tokens),
        "bits": reading.bits, "digits": reading.digits, "offset": reading.offset,
        "packed_zeros": reading.packed_zeros, "run": reading.run(weight.shape[1]),
    }  # fmt: skip
    if tokens <= DECODE_TOKENS:
        multiply_rows[lambda sizes: (triton.cdiv(rows, sizes["block_rows"]), tokens)](**arguments)
        return
    multiply_tiles[
        lambda sizes: (triton.cdiv(tokens, sizes["block_tokens"]), triton.cdiv(rows, sizes["block_rows"]))
    ](**arguments, tokens=tokens)  # fmt: skip
