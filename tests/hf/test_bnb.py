"""Tensors named and laid out as bitsandbytes stores them, made by hand: read without that library."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from mote_quant.errors import ArtifactError
from mote_quant.formats import format_for
from mote_quant.formats.codebook import TABLES
from mote_quant.hf.bnb import absorb, module_names, read, spec_of
from mote_quant.recipe.schema import CodebookBits, IntegerBits
from tests.pico import PICO

ROWS, COLUMNS = 4, 96  # 6 blocks of 64
BYTES = torch.arange(ROWS * COLUMNS // 2).to(torch.uint8)
CODES = torch.stack([BYTES >> 4, BYTES & 15], -1).view(ROWS, COLUMNS)
SCALES = torch.arange(1.0, 7.0)


def blob(values: dict) -> Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def four_bit(format: str = "nf4", nested: bool = False, **state) -> dict[str, Tensor]:
    values = {"quant_type": format, "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    tensors = {"weight": BYTES.view(-1, 1), "weight.absmax": SCALES, "weight.quant_map": torch.tensor(TABLES[format])}
    if nested:
        values |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
        tensors |= {
            "weight.absmax": torch.tensor([0, 50, 100, 150, 200, 255], dtype=torch.uint8),
            "weight.nested_absmax": torch.tensor([2.0]),
            "weight.nested_quant_map": torch.linspace(-1, 1, 256),
        }
    return tensors | {f"weight.quant_state.bitsandbytes__{format}": blob(values | state), "bias": torch.zeros(ROWS)}


def dequantized(tensors: dict[str, Tensor]) -> Tensor:
    spec, codes = read(tensors)
    form = format_for(spec)
    return form.decompress(form.compress(codes), (ROWS, COLUMNS), torch.float32)


def by_hand(format: str, scales: Tensor) -> Tensor:
    block = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) // 64
    return torch.tensor(TABLES[format])[CODES.long()] * scales[block]


@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_four_bits(format):
    tensors = four_bit(format)
    assert spec_of(tensors) == CodebookBits(format=format, backend="bitsandbytes")
    assert torch.equal(dequantized(tensors), by_hand(format, SCALES))


@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_double_quantization_keeps_the_bytes_and_the_table_of_the_file(format):
    tensors = four_bit(format, nested=True)
    spec, codes = read(tensors)
    assert spec == CodebookBits(format=format, double_quant=True, backend="bitsandbytes")
    stored = format_for(spec).compress(codes)
    assert torch.equal(stored["weight"].flatten(), BYTES)
    assert torch.equal(stored["weight_scale"], tensors["weight.absmax"])
    scales = torch.linspace(-1, 1, 256)[tensors["weight.absmax"].long()] * 2.0 + 0.25
    assert torch.equal(dequantized(tensors), by_hand(format, scales))


def test_storage_in_another_type_and_scales_turned_by_a_forward_are_the_same_weight():
    expected = dequantized(four_bit())
    assert torch.equal(dequantized(four_bit() | {"weight": BYTES.view(torch.bfloat16).view(-1, 1)}), expected)

    shape = {"shape": [3, 128]}  # whole blocks in a row, or no forward turns them
    turned = SCALES.view(3, 2).t().contiguous().bfloat16()
    straight, after = (read(four_bit(**shape) | change)[1] for change in ({}, {"weight.absmax": turned}))
    assert torch.equal(after.scale, straight.scale)


def test_int8_by_rows():
    values = torch.arange(-127, 129 - 1, 1).clamp(max=127).to(torch.int8)[: 2 * 100].view(2, 100)
    largest = torch.tensor([12.7, 0.5])
    spec, codes = read({"weight": values, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)})
    assert spec == IntegerBits(format="int8", scale_dtype="float32", backend="bitsandbytes")
    form = format_for(spec)
    weight = form.decompress(form.compress(codes), (2, 100), torch.float32)
    assert torch.allclose(weight, values * largest.unsqueeze(-1) / 127, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight.quant_state.bitsandbytes__nf4": torch.tensor([123], dtype=torch.uint8)}, "cannot be read"),
        ({"weight.quant_state.bitsandbytes__nf4": blob({"quant_type": "nf4"})}, "blocksize cannot be read"),
        ({"weight.absmax": SCALES[:-1]}, r"weight_scale must be torch.float32 \[6\]"),
        ({"weight": BYTES[:-1].view(-1, 1)}, "do not fit together"),
        ({"weight.absmax": None}, "weight.absmax"),
        ({"weight.quant_state.bitsandbytes__nf4": None}, "is missing"),
    ],
    ids=["no json", "a state cut short", "a scale short", "a byte short", "no scales", "no state"],
)
def test_damaged_tensors_are_refused_by_name(change, message):
    tensors = {key: tensor for key, tensor in (four_bit() | change).items() if tensor is not None}
    with pytest.raises(ArtifactError, match=message) as caught:
        read(tensors, "model.layers.0.q_proj")
    assert "model.layers.0.q_proj" in str(caught.value)


@pytest.mark.parametrize(
    "state",
    [{"blocksize": 4096}, {"nested_blocksize": 64}, {"quant_type": "int4"}, {"shape": [384]}, {"shape": [-1, 96]}],
    ids=str,
)
def test_states_that_no_format_of_ours_stores_are_refused(state):
    with pytest.raises(ArtifactError, match=f"{next(iter(state))}.* cannot be read"):
        read(four_bit(**state))


def test_int8_that_is_not_row_by_row_is_refused():
    tensors = {"weight": torch.ones(2, 3).char(), "SCB": torch.ones(2), "weight_format": torch.tensor(1)}
    with pytest.raises(ArtifactError, match="weight_format 1"):
        read(tensors)


def test_modules_are_told_from_the_names_of_tensors():
    keys = [f"a.q_proj.{key}" for key in four_bit()] + ["b.fc.weight", "b.fc.SCB", "norm.weight", "c.weight.absmax"]
    assert module_names(keys) == ["a.q_proj", "b.fc"]


def test_there_is_nothing_to_absorb_in_a_model_without_the_library():
    model = PICO["llama"]()
    before = {name: type(module) for name, module in model.named_modules()}
    assert absorb(model) == 0
    assert {name: type(module) for name, module in model.named_modules()} == before
