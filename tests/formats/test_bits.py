from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import FormatError
from mote_quant.formats.bits import pack_bits, packed_shape, unpack_bits


@given(bits=st.integers(1, 8), rows=st.integers(0, 5), columns=st.integers(0, 40), seed=st.integers(0, 999))
def test_round_trip(bits, rows, columns, seed):
    codes = torch.randint(2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == packed_shape(rows, columns, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, bits, columns), codes)


@pytest.mark.parametrize(("bits", "shape"), [(8, (3, 17, 1)), (4, (3, 9, 1)), (3, (3, 3, 3)), (2, (3, 5, 1))])
def test_units_of_17_columns(bits, shape):
    assert packed_shape(3, 17, bits) == shape


@given(bits=st.integers(1, 8), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_bytes_are_the_little_endian_bit_stream(bits, columns, seed):
    codes = torch.randint(2**bits, (1, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_bits(codes, bits)
    stream = sum(int(code) << (bits * i) for i, code in enumerate(codes[0]))
    assert bytes(packed.flatten().tolist()) == stream.to_bytes(packed.numel(), "little")


def test_a_code_too_large_is_refused():
    with pytest.raises(FormatError, match="below 8, found 8"):
        pack_bits(torch.tensor([[7, 8]], dtype=torch.uint8), 3)


@pytest.mark.parametrize("codes", [torch.zeros(2, 2, dtype=torch.int8), torch.zeros(4, dtype=torch.uint8)])
def test_codes_of_another_type_or_rank_are_refused(codes):
    with pytest.raises(FormatError, match=r"uint8 \[rows, columns\]"):
        pack_bits(codes, 4)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(2, 3, 1, dtype=torch.uint8),
        torch.zeros(2, 2, dtype=torch.uint8),
        torch.zeros(2, 2, 1, dtype=torch.int8),
        torch.tensor(1),
    ],
)
def test_packed_data_of_another_shape_or_type_is_refused(packed):
    with pytest.raises(FormatError, match="3 columns packed in 4 bits"):
        unpack_bits(packed, 4, 3)
