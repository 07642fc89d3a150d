"""Routed experts for few tokens: each pair of a token and an expert reads the rows of its own weights."""

from __future__ import annotations

import triton
import triton.language as tl

from mote_quant.kernels.triton.addressed import activate, finish, starts_of
from mote_quant.kernels.triton.ternary import in_units_of_x, row_sums
from mote_quant.kernels.triton.tuning import ROWS, tuned


@tuned(ROWS, "rows", "width", "bucket", "bits")
@triton.jit
def rise_rows(
    weights: tl.tensor, like: tl.tensor, scales: tl.tensor, scale: tl.tensor, scale_stride: tl.tensor,
    biases: tl.tensor, bias: tl.tensor, planes: tl.tensor, x_scales: tl.tensor, x_sums: tl.tensor, plane: tl.tensor,
    out: tl.tensor, chosen: tl.tensor, experts: tl.tensor, top_k: tl.tensor, rows: tl.tensor, width: tl.tensor,
    bucket: tl.tensor, entries: tl.constexpr, activation: tl.constexpr,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, aligned: tl.constexpr, words: tl.constexpr,
    block_rows: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """As `rise_tiles` for a stretch of one choice."""
    pair = tl.program_id(1).to(tl.int64)
    expert = tl.load(chosen + pair)
    if (expert < 0) | (expert >= experts):
        return
    token = pair // top_k
    lane = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    weight = expert * (entries + 1) + lane % entries
    row = tl.minimum(lane // entries, rows - 1).to(tl.int64)
    starts = starts_of(weights, weight, like, row, width, aligned)
    values = planes + token * digits * plane
    value = row_sums(starts, width, values, plane, bits, digits, integer, words, block_rows, block_bytes)
    value = in_units_of_x(value, x_scales, x_sums, token, integer)
    value = finish(value, row, weight, scales, scale, scale_stride, biases, bias)
    if entries == 2:
        up, gate = tl.split(tl.reshape(value, (block_rows // 2, 2)))
        value = up * activate(gate, activation)
    else:
        value = activate(value, activation)
    row = tl.program_id(0) * (block_rows // entries) + tl.arange(0, block_rows // entries)
    tl.store(out + pair * rows + row, value.to(out.dtype.element_ty), mask=row < rows)


@tuned(ROWS, "rows", "width", "bucket", "bits")
@triton.jit
def fall_rows(
    weights: tl.tensor, like: tl.tensor, scales: tl.tensor, scale: tl.tensor, scale_stride: tl.tensor,
    biases: tl.tensor, bias: tl.tensor, planes: tl.tensor, x_scales: tl.tensor, x_sums: tl.tensor, plane: tl.tensor,
    out: tl.tensor, chosen: tl.tensor, gates: tl.tensor, experts: tl.tensor, top_k: tl.tensor, rows: tl.tensor,
    width: tl.tensor, bucket: tl.tensor, entries: tl.constexpr,
    bits: tl.constexpr, digits: tl.constexpr, integer: tl.constexpr, aligned: tl.constexpr, words: tl.constexpr,
    block_rows: tl.constexpr, block_bytes: tl.constexpr,
) -> None:  # fmt: skip
    """A stretch of one token's output: the sum over its choices of gate * down(entering)."""
    token = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    row = tl.minimum(lane, rows - 1).to(tl.int64)
    total = tl.zeros((block_rows,), dtype=tl.float32)
    for choice in range(0, top_k):
        pair = token * top_k + choice
        expert = tl.load(chosen + pair)
        if (expert >= 0) & (expert < experts):
            weight = tl.zeros_like(row) + expert * (entries + 1) + entries
            starts = starts_of(weights, weight, like, row, width, aligned)
            values = planes + pair * digits * plane
            value = row_sums(starts, width, values, plane, bits, digits, integer, words, block_rows, block_bytes)
            value = in_units_of_x(value, x_scales, x_sums, pair, integer)
            value = finish(value, row, weight, scales, scale, scale_stride, biases, bias)
            total += value * tl.load(gates + pair)
    tl.store(out + token * rows + row, total.to(out.dtype.element_ty), mask=lane < rows)
