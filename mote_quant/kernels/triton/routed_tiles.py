"""Routed experts for many tokens: tiles of tokens in sorted order find their expert by the offsets of the choices."""

from __future__ import annotations

import triton
import triton.language as tl

from mote_quant.kernels.triton.addressed import activate, finish, starts_of
from mote_quant.kernels.triton.ternary import in_units_of_x, tile_sums
from mote_quant.kernels.triton.tuning import TILES, tuned


@triton.jit
def find_tile(offsets: tl.tensor, experts: tl.tensor, most: tl.constexpr, block_tokens: tl.constexpr) -> tl.tensor:
    """(expert, first position, end of its positions) of this program's tile; an expert too many where there is none."""
    tile = tl.program_id(0)
    expert = tl.arange(0, most)
    begin = tl.load(offsets + expert, mask=expert < experts, other=0)
    end = tl.load(offsets + expert + 1, mask=expert < experts, other=0)
    tiles = tl.cdiv(end - begin, block_tokens)
    mine = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(expert < mine, tiles, 0), 0)
    first = tl.sum(tl.where(expert == mine, begin, 0), 0) + (tile - before) * block_tokens
    return mine, first, tl.sum(tl.where(expert == mine, end, 0), 0)


@tuned(TILES, "rows", "width", "bucket", "bits")
@triton.jit
def rise_tiles(
    weights: tl.tensor, like: tl.tensor, scales: tl.tensor, scale: tl.tensor, scale_stride: tl.tensor,
    biases: tl.tensor, bias: tl.tensor, planes: tl.tensor, x_scales: tl.tensor, x_sums: tl.tensor, plane: tl.tensor,
    out: tl.tensor, order: tl.tensor, offsets: tl.tensor, experts: tl.tensor, top_k: tl.tensor, rows: tl.tensor,
    width: tl.tensor, bucket: tl.tensor, most: tl.constexpr, entries: tl.constexpr, activation: tl.constexpr,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, aligned: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of activation(gate) * up, or of activation(up), its tokens in sorted order.

    Rows of up and gate alternate where there are both (`entries` 2), so that one pass over the activations does.
    """
    expert, first, end = find_tile(offsets, experts, most, block_tokens)
    if expert >= experts:
        return
    position = first + tl.arange(0, block_tokens)
    token = tl.load(order + tl.minimum(position, end - 1)) // top_k
    lane = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    weight = expert * (entries + 1) + lane % entries
    row = tl.minimum(lane // entries, rows - 1).to(tl.int64)
    starts = starts_of(weights, weight, like, row, width, aligned)
    value = tile_sums(
        starts, width, planes, token, plane, bits, digits, integer, block_rows, block_tokens, block_bytes
    )  # fmt: skip
    value = in_units_of_x(value, x_scales, x_sums, token[None, :], integer)
    value = finish(value, row[:, None], weight[:, None], scales, scale, scale_stride, biases, bias)
    if entries == 2:
        up, gate = tl.split(tl.permute(tl.reshape(value, (block_rows // 2, 2, block_tokens)), (0, 2, 1)))
        value = up * activate(gate, activation)
    else:
        value = activate(value, activation)
    row = tl.program_id(1) * (block_rows // entries) + tl.arange(0, block_rows // entries)
    inside = (row < rows)[:, None] & (position < end)[None, :]
    at = out + position.to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(at, value.to(out.dtype.element_ty), mask=inside)


@tuned(TILES, "rows", "width", "bucket", "bits")
@triton.jit
def fall_tiles(
    weights: tl.tensor, like: tl.tensor, scales: tl.tensor, scale: tl.tensor, scale_stride: tl.tensor,
    biases: tl.tensor, bias: tl.tensor, planes: tl.tensor, x_scales: tl.tensor, x_sums: tl.tensor, plane: tl.tensor,
    out: tl.tensor, order: tl.tensor, offsets: tl.tensor, gates: tl.tensor, experts: tl.tensor, rows: tl.tensor,
    width: tl.tensor, bucket: tl.tensor, most: tl.constexpr, entries: tl.constexpr,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, aligned: tl.constexpr,
    block_rows: tl.constexpr, block_tokens: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A tile of gate * down(entering), back in the order of the choices."""
    expert, first, end = find_tile(offsets, experts, most, block_tokens)
    if expert >= experts:
        return
    position = first + tl.arange(0, block_tokens)
    inside = position < end
    position = tl.minimum(position, end - 1).to(tl.int64)
    lane = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    row = tl.minimum(lane, rows - 1).to(tl.int64)
    weight = tl.zeros_like(lane) + expert * (entries + 1) + entries
    starts = starts_of(weights, weight, like, row, width, aligned)
    value = tile_sums(
        starts, width, planes, position, plane, bits, digits, integer, block_rows, block_tokens, block_bytes
    )
    value = in_units_of_x(value, x_scales, x_sums, position[None, :], integer)
    value = finish(value, row[:, None], weight[:, None], scales, scale, scale_stride, biases, bias)
    pair = tl.load(order + position)
    value *= tl.load(gates + pair)[None, :]
    at = out + pair[None, :] * rows + row[:, None]
    tl.store(at, value.to(out.dtype.element_ty), mask=(lane < rows)[:, None] & inside[None, :])
