from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.qat.fake import fake_quantize
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary.quantize import absmean_scale, scaled_codes

common = {"packing": st.sampled_from(["2bit", "base3"]), "scale_dtype": st.sampled_from(["float16", "float32"])}
specs = st.one_of(
    st.builds(TernaryBits, format=st.just("ternary"), granularity=st.sampled_from(["tensor", "channel"]), **common),
    st.builds(
        TernaryBits,
        format=st.just("ternary"),
        granularity=st.just("group"),
        group_size=st.sampled_from([1, 3, 8, 50]),
        **common,
    ),
)


def example(spec: TernaryBits, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    scale = absmean_scale(weight, spec)
    return weight, scaled_codes(weight, scale, spec), scale


@given(spec=specs, rows=st.integers(1, 5), columns=st.integers(1, 30), seed=st.integers(0, 999))
def test_packed_weight_is_the_trained_weight_to_the_bit(spec, rows, columns, seed):
    weight, codes, scale = example(spec, rows, columns, seed)
    stored = format_for(spec).compress(Codes(codes, scale))
    assert torch.equal(format_for(spec).codes(stored, (rows, columns)), codes)
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.float32), fake_quantize(weight, spec))


@given(spec=specs, rows=st.integers(1, 5), columns=st.integers(1, 30))
def test_layout_is_what_compress_returns(spec, rows, columns):
    _, codes, scale = example(spec, rows, columns)
    stored = format_for(spec).compress(Codes(codes, scale))
    layout = format_for(spec).layout((rows, columns))
    assert {name: (tuple(t.shape), t.dtype, t.nbytes) for name, t in stored.items()} == {
        name: (part.shape, part.dtype, part.nbytes) for name, part in layout.items()
    }
    assert stored["weight"].dim() == 3


@pytest.mark.parametrize(("packing", "width"), [("2bit", 33), ("base3", 26)])
def test_bytes_of_a_known_case(packing, width):
    spec = TernaryBits(format="ternary", packing=packing, granularity="group", group_size=64)
    layout = format_for(spec).layout((7, 130))
    assert layout["weight"].shape == (7, width, 1)
    assert layout["weight_scale"].nbytes == 7 * 3 * 4
    assert format_for(spec).paper_bits == 2


def test_empty_rows():
    spec = TernaryBits(format="ternary", granularity="channel")
    codes, scale = torch.zeros(0, 9, dtype=torch.int8), torch.zeros(0, 1)
    stored = format_for(spec).compress(Codes(codes, scale))
    assert format_for(spec).decompress(stored, (0, 9), torch.bfloat16).shape == (0, 9)


@pytest.mark.parametrize(("packing", "damage", "message"), [("2bit", 0b11, "digit 3"), ("base3", 237, "byte 237")])
def test_bytes_that_are_no_codes_are_refused(packing, damage, message):
    spec = TernaryBits(format="ternary", packing=packing)
    _, codes, scale = example(spec, 3, 8)
    stored = format_for(spec).compress(Codes(codes, scale))
    stored["weight"][1, 1, 0] = damage
    with pytest.raises(FormatError, match=message):
        format_for(spec).codes(stored, (3, 8))


def test_wrong_inputs_are_refused():
    spec = TernaryBits(format="ternary", granularity="channel")
    _, codes, scale = example(spec, 3, 8)
    form = format_for(spec)
    with pytest.raises(FormatError, match="no zero points"):
        form.compress(Codes(codes, scale, torch.zeros(3, 1)))
    with pytest.raises(FormatError, match="-1, 0 or 1"):
        form.compress(Codes(codes * 2, scale))
    with pytest.raises(FormatError, match="int8"):
        form.compress(Codes(codes.long(), scale))
    with pytest.raises(FormatError, match=r"weight_scale must be torch.float32 \[3, 1\]"):
        form.compress(Codes(codes, scale[:1]))
    with pytest.raises(FormatError, match="not finite"):
        form.compress(Codes(codes, scale * torch.nan))
    with pytest.raises(FormatError, match="lacks weight_scale"):
        form.decompress({"weight": form.compress(Codes(codes, scale))["weight"]}, (3, 8), torch.float32)
