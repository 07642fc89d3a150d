from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.binary import pack_binary, unpack_binary
from mote_quant.qat.codes import find_codes
from mote_quant.qat.fake import fake_quantize
from mote_quant.recipe.schema import BinaryBits

common = {"format": st.just("binary"), "scale_dtype": st.sampled_from(["float32", "float16"])}
specs = st.one_of(
    st.builds(BinaryBits, granularity=st.sampled_from(["tensor", "channel"]), **common),
    st.builds(BinaryBits, granularity=st.just("group"), group_size=st.integers(1, 9), **common),
)


def signs(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (rows, columns), generator=generator).mul_(2).sub_(1).to(torch.int8)


@given(rows=st.integers(0, 5), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_unpacking_undoes_packing(rows, columns, seed):
    codes = signs(rows, columns, seed)
    packed = pack_binary(codes)
    assert packed.shape == (rows, -(-columns // 8))
    assert torch.equal(unpack_binary(packed, columns), codes)


@given(columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_bytes_are_numpys_little_endian_bits(columns, seed):
    codes = signs(3, columns, seed)
    expected = np.packbits(codes.numpy() > 0, axis=1, bitorder="little")
    assert np.array_equal(pack_binary(codes).numpy(), expected)


@given(spec=specs, rows=st.integers(1, 5), columns=st.integers(1, 30), seed=st.integers(0, 99))
def test_packed_weight_is_the_trained_weight_to_the_bit(spec, rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes = find_codes(weight, spec)
    stored = format_for(spec).compress(codes)
    layout = format_for(spec).layout((rows, columns))
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        name: (part.shape, part.dtype) for name, part in layout.items()
    }
    assert torch.equal(format_for(spec).codes(stored, (rows, columns)), codes.codes)
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.float32), fake_quantize(weight, spec))


def test_by_hand():
    spec = BinaryBits(format="binary", granularity="group", group_size=2)
    weight = torch.tensor([[1.0, -3.0, 0.0, -0.0, -5.0]])
    assert fake_quantize(weight, spec).tolist() == [[2.0, -2.0, pytest.approx(1e-5), pytest.approx(1e-5), -5.0]]
    assert format_for(spec).layout((1, 5))["weight"].nbytes == 1
    assert format_for(spec).paper_bits == 1.0


def test_what_is_no_binary_code_is_refused():
    with pytest.raises(FormatError, match=r"must be -1 or 1, found \[-1, 0, 1\]"):
        pack_binary(torch.tensor([[-1, 0, 1]], dtype=torch.int8))
    with pytest.raises(FormatError, match="must be int8"):
        pack_binary(signs(2, 3).long())
    spec = BinaryBits(format="binary")
    with pytest.raises(FormatError, match="takes no zero points"):
        format_for(spec).compress(Codes(signs(2, 3), torch.ones(1), torch.zeros(1)))
