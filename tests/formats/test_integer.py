from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups
from mote_quant.formats.integer import BITS, code_range
from mote_quant.recipe.schema import IntegerBits

specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 1, 3, 4, 8, 32, 100]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


def example(spec: IntegerBits, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    low, high = code_range(spec)
    groups = count_groups(spec.group_size, columns)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator)
    scale = (torch.rand(rows, groups, generator=generator) + 0.01).to(dtype_of(spec.scale_dtype))
    zero = None if spec.symmetric else torch.randint(high + 1, (rows, groups), generator=generator)
    return codes, scale, zero


@given(spec=specs, rows=st.integers(0, 5), columns=st.integers(0, 40), seed=st.integers(0, 999))
def test_stored_tensors_give_the_same_codes_and_exactly_codes_times_scale(spec, rows, columns, seed):
    codes, scale, zero = example(spec, rows, columns, seed)
    stored = format_for(spec).compress(Codes(codes, scale, zero))
    assert torch.equal(format_for(spec).codes(stored, (rows, columns)), codes.short())

    group = torch.arange(columns) // (columns or 1 if spec.group_size == -1 else spec.group_size)
    shifted = codes if zero is None else codes - zero[:, group]
    expected = shifted.float() * scale.float()[:, group]
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.float32), expected)
    assert torch.equal(format_for(spec).decompress(stored, (rows, columns), torch.bfloat16), expected.bfloat16())


@given(spec=specs, rows=st.integers(0, 5), columns=st.integers(0, 40))
def test_layout_is_what_compress_returns(spec, rows, columns):
    stored = format_for(spec).compress(Codes(*example(spec, rows, columns)))
    layout = format_for(spec).layout((rows, columns))
    assert {name: (tuple(t.shape), t.dtype, t.nbytes) for name, t in stored.items()} == {
        name: (part.shape, part.dtype, part.nbytes) for name, part in layout.items()
    }
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert stored["weight"].dim() == 3


def test_bytes_of_a_known_case():
    layout = format_for(IntegerBits(format="int3", group_size=8, symmetric=False)).layout((10, 20))
    assert {name: part.nbytes for name, part in layout.items()} == {
        "weight": 10 * 3 * 3,  # 20 columns are 3 units of 8 codes, 3 bytes each
        "weight_scale": 10 * 3 * 2,
        "weight_zero": 10 * 1 * 3,
    }


@pytest.mark.parametrize("name", BITS)
def test_paper_bits(name):
    assert format_for(IntegerBits(format=name)).paper_bits == BITS[name]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("end", [0, 1])
def test_codes_out_of_range_are_refused(symmetric, end):
    spec = IntegerBits(format="int4", symmetric=symmetric)
    codes, scale, zero = example(spec, 2, 4)
    codes[0, 0] = code_range(spec)[end] + (2 * end - 1)
    with pytest.raises(FormatError, match=r"must lie between -8 and 7" if symmetric else r"must lie between 0 and 15"):
        format_for(spec).compress(Codes(codes, scale, zero))


def test_zero_points_out_of_range_are_refused():
    spec = IntegerBits(format="int2", symmetric=False)
    codes, scale, _ = example(spec, 2, 4)
    with pytest.raises(FormatError, match="zero points of int2 must lie between 0 and 3, found 0 to 4"):
        format_for(spec).compress(Codes(codes, scale, torch.tensor([[0], [4]])))


def test_wrong_inputs_are_refused():
    spec = IntegerBits(format="int4", group_size=2)
    codes, scale, _ = example(spec, 2, 4)
    form = format_for(spec)
    for wrong in (codes.float(), codes[0]):
        with pytest.raises(FormatError, match="codes must be integers"):
            form.compress(Codes(wrong, scale))
    for wrong in (scale.float(), scale[:, :1], scale[0]):
        with pytest.raises(FormatError, match=r"weight_scale must be torch.float16 \[2, 2\]"):
            form.compress(Codes(codes, wrong))
    with pytest.raises(FormatError, match="not finite"):
        form.compress(Codes(codes, scale.fill_(torch.inf)))


def test_zero_points_must_fit_the_symmetry():
    symmetric, asymmetric = IntegerBits(format="int4"), IntegerBits(format="int4", symmetric=False)
    codes, scale, zero = example(asymmetric, 2, 4)
    with pytest.raises(FormatError, match="symmetric: false takes zero points"):
        format_for(asymmetric).compress(Codes(codes, scale))
    with pytest.raises(FormatError, match=r"zero points must be integers \[2, 1\]"):
        format_for(asymmetric).compress(Codes(codes, scale, torch.zeros(2, 3, dtype=torch.int64)))
    with pytest.raises(FormatError, match="symmetric: true takes no zero points"):
        format_for(symmetric).compress(Codes(codes.clamp(-8, 7), scale, zero))


@pytest.mark.parametrize("read", ["codes", "decompress"])
def test_damaged_tensors_are_refused(read):
    spec = IntegerBits(format="int4", group_size=2, symmetric=False)
    stored = format_for(spec).compress(Codes(*example(spec, 3, 5)))

    def attempt(**changes: Tensor | None) -> None:
        tensors = {name: tensor for name, tensor in (stored | changes).items() if tensor is not None}
        arguments = [tensors, (3, 5), torch.float32]
        getattr(format_for(spec), read)(*arguments[: 2 if read == "codes" else 3])

    with pytest.raises(FormatError, match="lacks weight_zero"):
        attempt(weight_zero=None)
    with pytest.raises(FormatError, match=r"weight must be torch.uint8 \[3, 3, 1\], found torch.uint8 \[3, 2, 1\]"):
        attempt(weight=stored["weight"][:, :2])
    with pytest.raises(FormatError, match=r"weight_scale must be torch.float16 \[3, 3\], found torch.bfloat16"):
        attempt(weight_scale=stored["weight_scale"].bfloat16())
