from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, SCALE_TABLE, TABLES
from mote_quant.kernels import PackedLinear
from mote_quant.recipe.schema import CodebookBits

specs = st.builds(
    CodebookBits,
    format=st.sampled_from(["nf4", "fp4"]),
    block_size=st.sampled_from([64, 128, 512]),
    double_quant=st.booleans(),
)
NF4 = CodebookBits(format="nf4")
DOUBLE = CodebookBits(format="fp4", double_quant=True)


def example(spec: CodebookBits, rows: int, columns: int, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (rows, columns), generator=generator)
    blocks = -(-rows * columns // spec.block_size)
    if not spec.double_quant:
        return Codes(codes, torch.rand(blocks, generator=generator))
    companions = {
        SCALE_TABLE: torch.randn(256, generator=generator),
        SCALE_SCALE: torch.rand(-(-blocks // 256), generator=generator),
        SCALE_OFFSET: torch.rand(1, generator=generator),
    }
    return Codes(codes, torch.randint(256, (blocks,), generator=generator).to(torch.uint8), companions=companions)


def block_scales(spec: CodebookBits, codes: Codes) -> Tensor:
    if not spec.double_quant:
        return codes.scale
    parts = codes.companions
    return (
        torch.stack(
            [parts[SCALE_TABLE][int(q)] * parts[SCALE_SCALE][i // 256] for i, q in enumerate(codes.scale)]
            or [torch.empty(0)]
        ).flatten()
        + (parts[SCALE_OFFSET])
    )


@given(spec=specs, rows=st.integers(0, 9), columns=st.integers(0, 90), seed=st.integers(0, 999))
def test_stored_tensors_give_the_same_codes_and_exactly_value_times_scale_of_the_block(spec, rows, columns, seed):
    codes = example(spec, rows, columns, seed)
    stored = format_for(spec).compress(codes)
    assert torch.equal(format_for(spec).codes(stored, (rows, columns)), codes.codes.to(torch.uint8))

    block = torch.arange(rows * columns).view(rows, columns) // spec.block_size
    expected = torch.tensor(TABLES[spec.format])[codes.codes] * block_scales(spec, codes)[block]
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.float32), expected)
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.bfloat16), expected.bfloat16())


def test_more_than_256_blocks_have_more_than_one_scale_of_scales():
    codes = example(DOUBLE, 130, 130)
    stored = format_for(DOUBLE).compress(codes)
    assert stored[SCALE_SCALE].shape == (2,)
    block = torch.arange(130 * 130).view(130, 130) // 64
    expected = torch.tensor(TABLES["fp4"])[codes.codes] * block_scales(DOUBLE, codes)[block]
    assert torch.equal(format_for(DOUBLE).decompress(stored, (130, 130), torch.float32), expected)


@given(spec=specs, rows=st.integers(0, 5), columns=st.integers(0, 90))
def test_layout_is_what_compress_returns(spec, rows, columns):
    stored = format_for(spec).compress(example(spec, rows, columns))
    layout = format_for(spec).layout((rows, columns))
    assert {name: (tuple(t.shape), t.dtype, t.nbytes) for name, t in stored.items()} == {
        name: (part.shape, part.dtype, part.nbytes) for name, part in layout.items()
    }
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert stored["weight"].dim() == 3


@pytest.mark.parametrize(("name", "bytes_"), [("nf4", [0x12, 0xF7]), ("fp4", [0x12, 0xF0])])
def test_the_first_code_is_the_high_half_and_an_odd_end_is_filled_with_zero(name, bytes_):
    stored = format_for(CodebookBits(format=name)).compress(Codes(torch.tensor([[1, 2, 15]]), torch.ones(1)))
    assert stored["weight"].flatten().tolist() == bytes_


def test_bytes_of_a_known_case():
    shape = (64, 512)  # 512 blocks of 64
    plain = {name: part.nbytes for name, part in format_for(NF4).layout(shape).items()}
    double = {name: part.nbytes for name, part in format_for(DOUBLE).layout(shape).items()}
    assert plain == {"weight": 64 * 256, "weight_scale": 512 * 4}
    assert double == {"weight": 64 * 256, "weight_scale": 512, SCALE_TABLE: 1024, SCALE_SCALE: 8, SCALE_OFFSET: 4}


def test_tables_span_minus_one_to_one_and_hold_zero():
    assert [(min(table), max(table), 0.0 in table, len(table)) for table in TABLES.values()] == [(-1, 1, True, 16)] * 2
    assert format_for(NF4).paper_bits == 4.0


def test_what_does_not_fit_is_refused():
    good = example(DOUBLE, 3, 50)
    form = format_for(DOUBLE)

    def attempt(codes=good.codes, scale=good.scale, zero=None, **companions) -> None:
        form.compress(Codes(codes, scale, zero, {**good.companions, **companions}))

    attempt()
    with pytest.raises(FormatError, match="fp4 takes no zero points"):
        attempt(zero=torch.zeros(3))
    with pytest.raises(FormatError, match=r"between 0 and 15, found 0 to 16"):
        attempt(codes=torch.full((3, 50), 16).index_fill_(0, torch.tensor([0]), 0))
    with pytest.raises(FormatError, match="codes must be integers"):
        attempt(codes=good.codes.float())
    with pytest.raises(FormatError, match=r"weight_scale must be torch.uint8 \[3\]"):
        attempt(scale=good.scale.float())
    with pytest.raises(FormatError, match=f"{SCALE_OFFSET} holds values that are not finite"):
        attempt(**{SCALE_OFFSET: torch.tensor([torch.nan])})
    with pytest.raises(FormatError, match=f"lacks {SCALE_TABLE}"):
        form.compress(Codes(good.codes, good.scale))


@pytest.mark.parametrize("read", ["codes", "decompress"])
def test_damaged_tensors_are_refused(read):
    stored = format_for(NF4).compress(example(NF4, 3, 50))
    arguments = [(3, 50), torch.float32][: 1 if read == "codes" else 2]
    with pytest.raises(FormatError, match=r"weight must be torch.uint8 \[75, 1, 1\]"):
        getattr(format_for(NF4), read)(stored | {"weight": stored["weight"][:-1]}, *arguments)
    with pytest.raises(FormatError, match="lacks weight_scale"):
        getattr(format_for(NF4), read)({"weight": stored["weight"]}, *arguments)


@given(spec=specs, rows=st.integers(1, 9), columns=st.integers(1, 90), bias=st.booleans())
def test_a_layer_reloads_to_the_same_bits_and_a_cast_leaves_codes_and_scales_alone(spec, rows, columns, bias):
    offsets = torch.randn(rows) if bias else None
    layer = PackedLinear.pack(spec, example(spec, rows, columns), offsets, torch.float32)
    reloaded = PackedLinear.empty(spec, columns, rows, bias, torch.float32)
    reloaded.load_state_dict(layer.state_dict())
    x = torch.randn(2, columns)
    assert torch.equal(reloaded(x), layer(x))

    before = {name: tensor.clone() for name, tensor in layer.packed.tensors.items()}
    layer.half()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.packed.tensors.items())
    assert layer.dequantize().dtype == torch.float16


def test_an_empty_layer_on_meta_holds_no_bytes():
    layer = PackedLinear.empty(DOUBLE, 90, 3, bias=True, dtype=torch.bfloat16, device="meta")
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert layer(torch.empty(2, 90, dtype=torch.bfloat16, device="meta")).shape == (2, 3)
