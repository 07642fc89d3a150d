"""Rounding to bfloat16 at random: fair, to a neighbour only, and the same bits wherever and whenever it is done."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.steps.train.stochastic import Stream, own_part, round_

STREAM = Stream(0, 1, "layer.weight")
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


def rounded(values: Tensor, stream: Stream = STREAM, start: int = 0) -> Tensor:
    made = values.clone()
    round_(made, stream, start)
    return made


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers around a float32, towards zero and away from it (the same one twice, if it is one)."""
    bits = torch.tensor([value], dtype=torch.float32).view(torch.int32)
    below = bits & -65536
    above = torch.where(below == bits, below, below + 65536)
    return float(below.view(torch.float32)), float(above.view(torch.float32))


@given(ANY, st.integers(0, 2**31))
@settings(max_examples=200)
def test_every_number_becomes_one_of_its_two_neighbours(value, step):
    values = torch.full((64,), value, dtype=torch.float32)
    found = rounded(values, Stream(3, step, "w"))
    assert set(found.tolist()) <= set(neighbours(value))
    assert torch.equal(found.bfloat16().float(), found)


@given(ANY)
@settings(max_examples=100)
def test_what_bfloat16_can_hold_stays(value):
    values = torch.full((64,), value).bfloat16().float()
    assert torch.equal(rounded(values).view(torch.int32), values.view(torch.int32))


@given(st.floats(2**-20, 2**20, width=32), st.sampled_from([1, -1]), st.integers(0, 1000))
@settings(max_examples=40)
def test_the_mean_is_the_number_itself(value, sign, step):
    many = 1 << 16
    low, high = (sign * side for side in neighbours(value))
    found = rounded(torch.full((many,), sign * value), Stream(0, step, "w")).double()
    share = (sign * value - low) / (high - low) if high != low else 0.0
    deviation = 5 * abs(high - low) * math.sqrt(share * (1 - share) / many)
    assert abs(float(found.mean()) - sign * value) <= deviation + 1e-7 * value


def test_nearest_is_not_fair_where_this_is():
    value = torch.full((1 << 16,), 1.0 + 2**-10)
    assert float(value.bfloat16().float().mean()) == 1.0
    assert float(rounded(value).double().mean()) == pytest.approx(1.0 + 2**-10, abs=2e-4)


def test_infinities_and_nan_stay():
    # The first NaN has bits only where bfloat16 has none; adding to the second would wrap around to -0.
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    infinite = torch.tensor([math.inf, -math.inf])
    assert rounded(nans.repeat(1000)).bfloat16().isnan().all()
    assert torch.equal(rounded(infinite.repeat(1000)), infinite.repeat(1000))
    assert torch.equal(rounded(torch.tensor([0.0, -0.0])).view(torch.int32), torch.tensor([0, -(2**31)]).int())


def test_other_seeds_steps_and_names_draw_other_bits():
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    streams = [STREAM, Stream(1, 1, "layer.weight"), Stream(0, 2, "layer.weight"), Stream(0, 1, "layer.bias")]
    found = [rounded(values, stream) for stream in streams]
    assert torch.equal(found[0], rounded(values, STREAM))
    for index, one in enumerate(found):
        for other in found[:index]:
            assert 0.2 < float((one != other).float().mean()) < 0.5


@given(st.integers(0, 40), st.integers(1, 40), st.sampled_from([0, 7, 2**32 - 9, 2**33 + 1]))
def test_bits_belong_to_places_whoever_draws_them(start, count, before):
    device = torch.device("cpu")
    whole = STREAM.bits(before, start + count, device)
    assert torch.equal(STREAM.bits(before + start, count, device), whole[start:])
    assert int(whole.min()) >= 0
    assert int(whole.max()) < 1 << 16


def test_rows_rounded_apart_are_those_of_the_whole():
    # Larger than the parts it is rounded in.
    whole = torch.randn(700, 513, generator=torch.Generator().manual_seed(0))
    apart = [rounded(rows, start=at * 513) for at, rows in zip((0, 233, 466), whole.split(233), strict=False)]
    assert torch.equal(torch.cat([*apart, rounded(whole[699:], start=699 * 513)]), rounded(whole))


def test_a_parameter_that_is_not_shared_is_all_here():
    values = torch.ones(3, 4)
    assert own_part(values) == (values, 0)


def test_bits_are_even():
    bits = STREAM.bits(0, 1 << 20, torch.device("cpu"))
    counts = torch.bincount(bits, minlength=1 << 16).double()
    # Of a fair draw the sum of squares has mean 65535 and deviation 362.
    assert float(((counts - 16) ** 2 / 16).sum()) == pytest.approx(65535, abs=5 * 362)
    pairs = torch.stack([bits[:-1], bits[1:]]).double()
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 5e-3
