from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.ternary import packing

PACKINGS = {
    "2bit": (4, packing.pack_2bit, packing.unpack_2bit, packing.check_2bit),
    "base3": (5, packing.pack_base3, packing.unpack_base3, packing.check_base3),
}
each_packing = pytest.mark.parametrize(("per_byte", "pack", "unpack", "check"), PACKINGS.values(), ids=PACKINGS)


def random_codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


@each_packing
@given(rows=st.integers(0, 6), columns=st.integers(0, 40), seed=st.integers(0, 999))
def test_round_trip(per_byte, pack, unpack, check, rows, columns, seed):
    codes = random_codes(rows, columns, seed)
    packed = pack(codes)
    check(packed)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, math.ceil(columns / per_byte))
    assert unpack(packed, columns).dtype == torch.int8
    assert torch.equal(unpack(packed, columns), codes)


@each_packing
def test_every_byte_that_packing_can_make_is_read_back(per_byte, pack, unpack, check):
    codes = torch.cartesian_prod(*[torch.tensor([-1, 0, 1], dtype=torch.int8)] * per_byte)
    packed = pack(codes)
    assert len(packed.unique()) == 3**per_byte
    assert torch.equal(unpack(packed, per_byte), codes)


@each_packing
def test_packing_reads_codes_that_are_not_contiguous(per_byte, pack, unpack, check):
    codes = random_codes(11, 7).T
    assert torch.equal(unpack(pack(codes), 11), codes)


def test_digits_stand_as_documented():
    codes = torch.tensor([[1, 0, -1, 1, -1, 1]], dtype=torch.int8)
    digits = [2, 1, 0, 2, 0, 2]
    assert packing.pack_2bit(codes).tolist() == [[2 + 1 * 4 + 0 * 16 + 2 * 64, digits[4] + 2 * 4 + 1 * 16 + 1 * 64]]
    numbers = [2 * 81 + 1 * 27 + 0 * 9 + 2 * 3 + 0, 2 * 81 + 1 * 27 + 1 * 9 + 1 * 3 + 1]
    assert packing.pack_base3(codes).tolist() == [[math.ceil(256 * number / 243) for number in numbers]]


def test_base3_digits_come_out_by_multiplying():
    codes = random_codes(50, 5)
    fractions = packing.pack_base3(codes)[:, 0].int()
    for place in range(5):
        fractions = 3 * (fractions % 256)
        assert torch.equal(fractions // 256 - 1, codes[:, place].int())


@each_packing
@pytest.mark.parametrize(
    "codes",
    [torch.full((1, 4), 2, dtype=torch.int8), torch.full((1, 4), -2, dtype=torch.int8)],
    ids=["above", "below"],
)
def test_codes_out_of_range_are_refused(per_byte, pack, unpack, check, codes):
    with pytest.raises(FormatError, match="-1, 0 or 1"):
        pack(codes)


@each_packing
@pytest.mark.parametrize(
    "codes", [torch.zeros(2, 4), torch.zeros(4, dtype=torch.int8), torch.zeros(2, 4, dtype=torch.int16)]
)
def test_codes_of_another_type_or_rank_are_refused(per_byte, pack, unpack, check, codes):
    with pytest.raises(FormatError, match=r"int8 \[rows, columns\]"):
        pack(codes)


@each_packing
@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(2, 2, dtype=torch.int8),
        torch.zeros(2, 2, 1, dtype=torch.uint8),
    ],
)
def test_packed_data_of_another_shape_or_type_is_refused(per_byte, pack, unpack, check, packed):
    with pytest.raises(FormatError, match=r"uint8 \[rows, 2\]"):
        unpack(packed, per_byte + 1)


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_the_digit_3_is_found_wherever_it_stands(shift):
    with pytest.raises(FormatError, match="digit 3"):
        packing.check_2bit(torch.tensor([[0, 3 << shift]], dtype=torch.uint8))


def test_the_13_bytes_that_base3_never_makes_are_named():
    valid = {math.ceil(256 * number / 243) for number in range(243)}
    for byte in range(256):
        packed = torch.tensor([[0, byte, 0]], dtype=torch.uint8)
        if byte in valid:
            packing.check_base3(packed)
        else:
            with pytest.raises(FormatError, match=f"byte {byte},"):
                packing.check_base3(packed)


def test_bytes_that_are_valid_pass():
    packing.check_base3(torch.empty(0, 3, dtype=torch.uint8))
    packing.check_2bit(torch.tensor([[0b10101010, 0b01010101, 0b10011000]], dtype=torch.uint8))
