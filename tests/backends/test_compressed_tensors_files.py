"""Files of compressed-tensors, packed by the library itself and by llm-compressor, which writes most of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import mote_quant
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import ModelError
from mote_quant.formats import Codes
from mote_quant.formats.groups import count_groups
from mote_quant.formats.integer import BITS
from mote_quant.hf.foreign.base import Layer
from mote_quant.hf.foreign.compressed_tensors import CompressedTensors
from mote_quant.hf.loading import load_model
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.rtn import rtn
from tests import pico
from tests.backends.beside import needs
from tests.foreign import (
    MIXTURE,
    compressed_config,
    compressed_group,
    grow,
    packed_layers,
    packed_model,
    start_fresh,
    write_as,
)
from tests.mixtures import logits
from tests.rounding import assert_same_to_rounding
from tests.sources import source_for

needs("compressed_tensors", "llmcompressor")

TINY = {"hidden": 64, "ffn": 128}
SPECS = [
    IntegerBits(format=f"int{bits}", group_size=size, symmetric=symmetric)
    for bits in (2, 3, 4, 5, 6, 8)
    for size in (-1, 32)
    for symmetric in (True, False)
]


def named(spec: IntegerBits) -> str:
    return f"{spec.format} {spec.group_size} {'symmetric' if spec.symmetric else 'asymmetric'}"


def scheme(group: dict[str, Any]) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**group["weights"]))


@pytest.mark.parametrize("layout", ["pack-quantized", "naive-quantized"])
@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_what_the_library_packs_is_read_to_the_bit(spec, layout):
    from compressed_tensors.compressors import BaseCompressor

    group = compressed_group(spec)
    library = BaseCompressor.get_value_from_registry(layout)
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float16)
    given = {"weight": weight, "weight_scale": (codes := rtn(weight, spec)).scale} | zero_points(codes, spec)
    stored = library.compress(given, scheme(group))
    layer = Layer("layer", "layer", frozenset({"Linear"}), (48, 96), stored)
    reader = CompressedTensors.of(compressed_config(group, format=layout))
    found = PackedLinear.pack(reader.spec(layer), reader.codes(layer), None, torch.float16)
    assert torch.equal(found.dequantize(), library.decompress(dict(stored), scheme(group))["weight"])
    assert found.spec.model_copy(update={"method": spec.method}) == spec


def zero_points(codes: Codes, spec: IntegerBits) -> dict[str, Tensor]:
    """Theirs are signed."""
    if codes.zero is None:
        return {}
    signed = codes.zero.short() - 2 ** (BITS[spec.format] - 1)
    return {"weight_zero_point": signed.to(torch.int8).view(48, count_groups(spec.group_size, 96))}


@pytest.mark.parametrize("method", ["compressed-tensors", "int-quantized"])
def test_folders_as_transformers_reads_them(method, tmp_path):
    spec = IntegerBits(format="int8" if method == "int-quantized" else "int4")
    model = packed_model("llama", spec, dtype=torch.float16, **TINY)
    folder = write_as(method, model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert_same_to_rounding(logits(load_model(folder)), logits(theirs))
    with pytest.raises(ModelError, match=r"layers of compressed-tensors; load the same files with mote_quant\.load"):
        mote_quant.apply(MIXTURE, theirs, data=source_for(theirs))


MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("llama", compressed_config(compressed_group(IntegerBits(format="int4", group_size=32)))),
    "int3 asymmetric": (
        "qwen2",
        compressed_config(compressed_group(IntegerBits(format="int3", group_size=32, symmetric=False))),
    ),
    "int8 and activations": (
        "llama",
        compressed_config(
            compressed_group(
                IntegerBits(format="int8"),
                input_activations={"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
            )
        ),
    ),
    "two groups": (
        "qwen2",
        compressed_config(
            compressed_group(IntegerBits(format="int8"), "re:.*down_proj"),
            compressed_group(IntegerBits(format="int4", group_size=32), "re:.*(gate|up)_proj", "re:.*[qkv]_proj"),
            ignore=["lm_head", "re:.*layers.1.self_attn.q_proj"],
        ),
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder for each of `MADE`, quantized and saved by llm-compressor."""
    if find_spec("llmcompressor") is None:
        pytest.skip("llmcompressor is not installed")
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    folder = tmp_path_factory.mktemp("llmcompressor")
    for name, (family, config) in MADE.items():
        pico.PICO[family](**TINY).to(torch.bfloat16).save_pretrained(folder / "dense")
        build_processor().save_pretrained(folder / "dense")
        model = AutoModelForCausalLM.from_pretrained(folder / "dense", dtype="auto")
        oneshot(
            model=model, recipe=QuantizationModifier(config_groups=config["config_groups"], ignore=config["ignore"])
        )
        model.save_pretrained(folder / name, save_compressed=True)
    return folder


@pytest.mark.parametrize("name", MADE)
def test_what_llmcompressor_wrote_gives_its_weights(made, name):
    theirs = AutoModelForCausalLM.from_pretrained(made / name, dtype="auto")
    ours = load_model(made / name)
    expected = logits(theirs)  # the first forward unpacks
    if "activations" not in name:
        assert_same_to_rounding(logits(ours), expected)
    for layer, packed in packed_layers(ours).items():
        assert torch.equal(packed.dequantize(), theirs.get_submodule(layer).weight), layer
    stored = load_file(made / name / "model.safetensors")
    assert packed_layers(ours).keys() == {key.removesuffix(".weight_scale") for key in stored if "weight_scale" in key}


def test_their_models_become_mixtures(made, tmp_path):
    grown = [grow(load_model(made / name), tmp_path / name) for name in MADE]
    start_fresh(tmp_path)
    for one in grown:
        one.check()
