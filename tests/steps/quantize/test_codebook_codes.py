from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import BadWeightsError, MissingExtraError
from mote_quant.formats import format_for
from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, TABLES, table_of
from mote_quant.recipe.schema import CodebookBits, IntegerBits
from mote_quant.steps.quantize.backends.bitsandbytes import quantize_int8
from mote_quant.steps.quantize.methods.codebook import codebook, codes_for, dynamic_table

specs = st.builds(
    CodebookBits,
    format=st.sampled_from(["nf4", "fp4"]),
    block_size=st.sampled_from([64, 128, 512]),
    double_quant=st.booleans(),
)
formats = st.sampled_from(["nf4", "fp4"])
NF4 = CodebookBits(format="nf4")


def weights(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10.0 ** (seed % 9 - 6)


def dequantized(weight: Tensor, spec: CodebookBits) -> Tensor:
    form = format_for(spec)
    return form.decompress(form.compress(codebook(weight, spec)), (weight.shape[0], weight.shape[1]), torch.float32)


@given(spec=specs, rows=st.integers(1, 9), columns=st.integers(1, 90), seed=st.integers(0, 999))
def test_every_weight_gets_a_value_as_near_as_any_in_the_table(spec, rows, columns, seed):
    weight = weights(rows, columns, seed)
    codes = codebook(weight, spec).codes.long()
    block = torch.arange(rows * columns).view(rows, columns) // spec.block_size
    largest = torch.stack([part.abs().max() for part in weight.flatten().split(spec.block_size)])[block]
    choices = largest.double().unsqueeze(-1) * table_of(spec.format).double()
    distance = (choices - weight.double().unsqueeze(-1)).abs()
    taken = distance.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    assert bool((taken <= distance.amin(-1) + 1e-6 * largest).all())


@given(spec=specs, rows=st.integers(1, 9), columns=st.integers(1, 90), seed=st.integers(0, 999))
def test_blocks_run_over_the_flattened_weight(spec, rows, columns, seed):
    weight = weights(rows, columns, seed)
    assert torch.equal(dequantized(weight, spec).flatten(), dequantized(weight.view(1, -1), spec).flatten())


@given(format=formats, seed=st.integers(0, 99))
def test_the_largest_weight_of_a_block_stays_what_it_is(format, seed):
    weight = weights(4, 64, seed)
    at = weight.abs().argmax(1, keepdim=True)
    kept = dequantized(weight, CodebookBits(format=format)).gather(1, at)
    assert torch.equal(kept, weight.gather(1, at))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_zeros_stay_zero(format, double):
    weight = torch.zeros(5, 50)
    weight[0] = 1.0
    assert torch.equal(dequantized(weight, CodebookBits(format=format)), weight)
    spec = CodebookBits(format=format, double_quant=double)
    assert not dequantized(torch.zeros(5, 50), spec).any()


@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_of_two_values_equally_near_the_smaller_is_taken(format):
    ascending = table_of(format).sort().values.unique()
    between = (ascending[1:] + ascending[:-1]) / 2
    weight = torch.cat([torch.ones(1), between]).view(1, -1)  # the 1 makes the scale 1
    assert torch.equal(dequantized(weight, CodebookBits(format=format))[0, 1:], ascending[:-1])


@given(spec=specs, rows=st.integers(1, 40), columns=st.integers(1, 90), seed=st.integers(0, 99))
def test_double_quantization_changes_scales_a_little_and_codes_not_at_all(spec, rows, columns, seed):
    plain, double = (spec.model_copy(update={"double_quant": value}) for value in (False, True))
    weight = weights(rows, columns, seed)
    once, twice = codebook(weight, plain), codebook(weight, double)
    assert torch.equal(once.codes, twice.codes)
    scales = format_for(double).scales(format_for(double).compress(twice))
    centred = once.scale - twice.companions[SCALE_OFFSET]
    # No gap between neighbours of the table is wider than 1/64.
    assert bool(((scales - once.scale).abs() <= centred.abs().max() / 120 + 1e-6 * once.scale).all())
    assert torch.allclose(twice.companions[SCALE_SCALE], torch.stack([c.abs().max() for c in centred.split(256)]))


def test_the_table_of_the_scales_is_the_dynamic_tree_type():
    table = dynamic_table()
    assert len(table) == 256
    assert bool((table.diff() > 0).all())
    assert table[-1] == 1.0
    assert table[127] == 0.0
    # Around zero, on both sides, and above it: the middle of the only interval of the lowest decade.
    assert table[128].item() == pytest.approx(0.55e-6)
    # Without its 1 and its 0 it is symmetric.
    assert torch.equal(table[:127], -table[128:-1].flip(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_are_quantized_as_float32(dtype):
    weight = weights(3, 50, 7).to(dtype)
    assert torch.equal(codebook(weight, NF4).codes, codebook(weight.float(), NF4).codes)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    weight = torch.ones(2, 3)
    weight[1, 1] = bad
    with pytest.raises(BadWeightsError, match="q_proj"):
        codes_for(weight, NF4, name="q_proj")


def test_a_backend_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = r"pip install 'mote-quant\[bnb\]'"
    with pytest.raises(MissingExtraError, match=message):
        codes_for(torch.ones(2, 3), CodebookBits(format="nf4", backend="bitsandbytes"))
    with pytest.raises(MissingExtraError, match=message):
        quantize_int8(torch.ones(2, 3), IntegerBits(format="int8", backend="bitsandbytes"))
    assert TABLES["nf4"][int(codes_for(torch.ones(2, 3), NF4).codes[0, 0])] == 1.0
