"""Files that gptqmodel wrote, and ours as gptqmodel and transformers read them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTQConfig

import mote_quant
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import ArtifactError, ModelError
from mote_quant.export import gptq
from mote_quant.formats.integer import BITS
from mote_quant.hf.foreign.awq import Awq
from mote_quant.hf.foreign.base import Layer
from mote_quant.hf.loading import load_model
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.rtn import rtn
from tests import pico
from tests.backends.beside import needs
from tests.foreign import MIXTURE, awq_config, grow, packed_layers, packed_model, start_fresh, write_as
from tests.mixtures import logits
from tests.sources import source_for

needs("gptqmodel", "gptq")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # by itself it asks for more than a machine of two cores has

TINY = {"hidden": 64, "ffn": 128, "max_position_embeddings": 64}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("llama", {"bits": 4, "group_size": 32}),
    "int4 asymmetric": ("qwen2", {"bits": 4, "group_size": 32, "sym": False}),
    "int3 asymmetric": ("llama", {"bits": 3, "group_size": 32, "sym": False}),
    "int8 rows": ("llama", {"bits": 8, "group_size": -1, "act_group_aware": False}),
    "dynamic": (
        "qwen2",
        {
            "bits": 4,
            "group_size": 32,
            "dynamic": {r"-:.*\.o_proj": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 64}},
        },
    ),
    "desc_act": ("llama", {"bits": 4, "group_size": 32, "desc_act": True, "act_group_aware": False}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder for each of `MADE`, quantized and saved by gptqmodel."""
    folder = tmp_path_factory.mktemp("gptqmodel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # it leaves logs where it stands
        for name, (family, settings) in MADE.items():
            quantize(family, settings, folder / f"dense {name}", folder / name)
    return folder


def quantize(family: str, settings: dict[str, Any], dense: Path, folder: Path) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    pico.PICO[family](**TINY).to(torch.float16).save_pretrained(dense)
    build_processor().save_pretrained(dense)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 96, (48,), generator=generator).tolist() for _ in range(8)]
    model = GPTQModel.load(str(dense), QuantizeConfig(**settings), device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids], batch_size=1)
    model.save(str(folder))


def theirs(folder: Path) -> Any:
    """The model as gptqmodel loads it, on its plain torch kernel."""
    from gptqmodel import BACKEND, GPTQModel

    # In bfloat16, its choice for a CPU, it would round the scales.
    return GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model


def dense_weights(model: Any) -> dict[str, Tensor]:
    """The weights [out, in] that gptqmodel computes with."""
    quantized = {name: m for name, m in model.named_modules() if hasattr(m, "qweight")}
    return {name: module.dequantize_weight().t() for name, module in quantized.items()}


READ = [name for name in MADE if name != "desc_act"]


@pytest.mark.parametrize("name", READ)
def test_their_files_give_their_weights_to_the_bit(made, name):
    model, expected = load_model(made / name), dense_weights(theirs(made / name))
    found = packed_layers(model)
    assert found.keys() == expected.keys()
    assert len(found) == (12 if name == "dynamic" else 14)
    for layer, weight in expected.items():
        ours = copy.deepcopy(found[layer]).to(weight.dtype).dequantize()
        assert torch.equal(ours, weight), layer


def test_scattered_groups_are_refused(made):
    with pytest.raises(ArtifactError, match="was quantized with desc_act: true"):
        load_model(made / "desc_act")


def test_their_models_become_mixtures(made, tmp_path):
    grown = [grow(load_model(made / name), tmp_path / name) for name in READ]
    start_fresh(tmp_path)
    for one in grown:
        one.check()


WRITTEN = [
    IntegerBits(format="int2", group_size=32),
    IntegerBits(format="int3", group_size=32, symmetric=False),
    IntegerBits(format="int4", group_size=32),
    IntegerBits(format="int4", group_size=64, symmetric=False),
    IntegerBits(format="int8"),
]


@pytest.mark.parametrize("roles", [("ffn", "attention"), ("ffn",)])
@pytest.mark.parametrize("spec", WRITTEN, ids=lambda spec: f"{spec.format} {spec.symmetric}")
def test_gptqmodel_reads_ours(spec, roles, tmp_path):
    model = packed_model("qwen2", spec, roles, torch.float16, **TINY)
    gptq.export(model, tmp_path, build_processor())
    read = theirs(tmp_path)
    found = dense_weights(read)
    assert found.keys() == packed_layers(model).keys()
    for name, weight in found.items():
        assert torch.equal(copy.deepcopy(packed_layers(model)[name]).to(weight.dtype).dequantize(), weight), name
    close(read, model)


@pytest.mark.parametrize("roles", [("ffn", "attention"), ("ffn",)])
@pytest.mark.parametrize("spec", WRITTEN, ids=lambda spec: f"{spec.format} {spec.symmetric}")
def test_transformers_reads_ours(spec, roles, tmp_path):
    model = packed_model("llama", spec, roles, torch.float16, **TINY)
    gptq.export(model, tmp_path)
    kernel = GPTQConfig(bits=BITS[spec.format], backend="torch")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=kernel, device_map="cpu", dtype="auto")
    assert {name for name, m in read.named_modules() if hasattr(m, "qweight")} == packed_layers(model).keys()
    close(read, model)


def test_transformers_reads_layers_that_differ(tmp_path):
    model = packed_model("llama", IntegerBits(format="int4", group_size=32), ("ffn",), torch.float16, **TINY)
    model.model.layers[1].mlp.up_proj = pico.PICO["llama"](**TINY).half().model.layers[1].mlp.up_proj
    gptq.export(model, tmp_path)
    kernel = GPTQConfig(bits=4, backend="torch")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=kernel, device_map="cpu", dtype="auto")
    assert {name for name, m in read.named_modules() if hasattr(m, "qweight")} == packed_layers(model).keys()
    close(read, model)


def test_their_live_layers_are_refused(tmp_path):
    gptq.export(packed_model("llama", WRITTEN[2], dtype=torch.float16, **TINY), tmp_path, build_processor())
    for live in (theirs(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")):
        with pytest.raises(ModelError, match=r"layers of gptq; load the same files with mote_quant\.load_model"):
            mote_quant.apply(MIXTURE, live, data=source_for(live))


def close(read: Any, model: Any) -> None:
    """The same logits to the rounding of 16 bits."""
    expected = logits(model).float()
    found = logits(read).float()
    assert float((found - expected).norm() / expected.norm()) < 5e-3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_awq_layers_that_gptqmodel_packed(bits):
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    spec = IntegerBits(format=f"int{bits}", group_size=32, symmetric=False)
    linear = nn.Linear(64, 96, bias=False, dtype=torch.float16)
    codes = rtn(linear.weight, spec)
    ours = PackedLinear.pack(spec, codes, None, torch.float16)
    linear.weight.data = ours.dequantize()
    packed = AwqTorchLinear(bits, 32, False, False, 64, 96, register_buffers=True)
    packed.pack(linear, codes.scale, codes.zero.half())
    tensors = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
    layer = Layer("layer", "layer", frozenset(), (96, 64), tensors)
    reader = Awq.of(awq_config(spec))
    read = PackedLinear.pack(reader.spec(layer), reader.codes(layer), None, torch.float16)
    assert torch.equal(read.codes(), ours.codes())
    expected = dequantize_gemm(
        qweight=packed.qweight, qzeros=packed.qzeros, scales=packed.scales, bits=bits, group_size=32
    )
    assert torch.equal(read.dequantize(), expected.t())


def test_awq_files_as_transformers_reads_them(tmp_path):
    spec = IntegerBits(format="int4", group_size=32, symmetric=False)
    model = packed_model("llama", spec, dtype=torch.float16, **TINY)
    folder = write_as("awq", model, tmp_path)
    read = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float16)
    quantized = {name for name, module in read.named_modules() if hasattr(module, "qweight")}
    assert quantized == packed_layers(load_model(folder)).keys()
    for name in quantized:
        assert torch.equal(read.get_submodule(name).qweight, load_file(folder / "model.safetensors")[f"{name}.qweight"])
    expected, found = logits(load_model(folder)).float(), logits(read).float()
    assert (
        float((found - expected).norm() / expected.norm()) < 3e-2
    )  # the kernel it takes on a CPU computes in bfloat16
