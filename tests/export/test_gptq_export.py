"""Models written as GPTQ checkpoints: what is in the files, what reads back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mote_quant.cli import app
from mote_quant.errors import FormatError, RequestError, SaveError
from mote_quant.export import EXPORTERS, exporter, gptq
from mote_quant.hf.loading import load_model
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import CodebookBits, IntegerBits
from mote_quant.steps.quantize.methods.codebook import codebook
from tests import foreign, pico
from tests.foreign import packed_layers, packed_model
from tests.mixtures import TERNARY, bits_of, logits, mixture, tensors_in

INT4 = IntegerBits(format="int4", group_size=32)
specs = st.builds(
    IntegerBits,
    format=st.sampled_from(["int2", "int3", "int4", "int8"]),
    group_size=st.sampled_from([-1, 16, 32]),
    symmetric=st.booleans(),
)


def settings_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@settings(max_examples=12, deadline=None)
@given(spec=specs, family=st.sampled_from(["llama", "qwen2", "gpt2", "opt"]))
def test_any_format_is_read_back(spec, family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptq")
    model = packed_model(family, spec)
    before = bits_of(model.state_dict())
    gptq.export(model, folder)
    found = load_model(folder)
    assert torch.equal(logits(found), logits(model))
    for name, layer in packed_layers(found).items():
        assert torch.equal(layer.codes(), packed_layers(model)[name].codes()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.quantization_config.quant_method == "mote"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_files_hold_what_others_expect(bits, symmetric, tmp_path):
    spec = IntegerBits(format=f"int{bits}", group_size=32, symmetric=symmetric)
    model = packed_model("llama", spec, layers=1)
    gptq.export(model, tmp_path)
    layout = "gptq" if symmetric else "gptq_v2"
    written, name = tensors_in(tmp_path), "model.layers.0.mlp.up_proj"
    for key, tensor in foreign.gptq(layout)(packed_layers(model)[name], spec).items():
        assert torch.equal(written[f"{name}.{key}"], tensor), key
        assert written[f"{name}.{key}"].dtype == tensor.dtype
    assert f"{name}.weight" not in written
    said = settings_in(tmp_path)
    assert said == json.loads((tmp_path / "quantize_config.json").read_text())
    assert said["quant_method"] == "gptq"
    assert (said["bits"], said["group_size"], said["sym"]) == (bits, 32, symmetric)
    assert said["checkpoint_format"] == layout
    assert "dynamic" not in said


def test_layers_left_dense_are_named_in_both_dialects(tmp_path):
    gptq.export(packed_model("qwen2", INT4, roles=["ffn"]), tmp_path)
    said = settings_in(tmp_path)
    dense = {rf"-:^model\.layers\.{layer}\.self_attn\.{name}_proj$" for layer in (0, 1) for name in "qkvo"}
    assert set(said["dynamic"]) == dense
    assert said["modules_in_block_to_quantize"] == [["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]]


def test_layers_that_differ_are_named_in_full(tmp_path):
    model = packed_model("llama", INT4, roles=["ffn"])
    replace_module(
        model, "model.layers.1.mlp.up_proj", pico.PICO["llama"](hidden=64, ffn=96).model.layers[1].mlp.up_proj
    )
    gptq.export(model, tmp_path)
    named = settings_in(tmp_path)["modules_in_block_to_quantize"]
    assert named == [list(packed_layers(model))]
    assert r"-:^model\.layers\.1\.mlp\.up_proj$" in settings_in(tmp_path)["dynamic"]
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_a_vlm_and_its_processor(tmp_path):
    class Processor:
        def save_pretrained(self, folder: Path) -> None:
            (Path(folder) / "processor.json").write_text("{}")

    model = packed_model("llava", INT4)
    gptq.export(model, tmp_path, Processor())
    assert (tmp_path / "processor.json").is_file()
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_what_is_read_from_others_can_be_written_again(tmp_path):
    model = packed_model("llama", IntegerBits(format="int4", group_size=16, symmetric=False))
    found = load_model(foreign.write_as("awq", model, tmp_path / "awq"))
    gptq.export(found, tmp_path / "gptq")
    assert torch.equal(logits(load_model(tmp_path / "gptq")), logits(model))


def mixed(model: Any) -> Any:
    """The first decoder layer quantized otherwise."""
    layer = packed_model("llama", IntegerBits(format="int8")).model.layers[0].mlp.up_proj
    replace_module(model, "model.layers.0.mlp.up_proj", layer)
    return model


def nf4(model: Any) -> Any:
    spec = CodebookBits(format="nf4")
    weight = model.model.layers[0].mlp.up_proj.dequantize()
    replace_module(
        model, "model.layers.0.mlp.up_proj", PackedLinear.pack(spec, codebook(weight, spec), None, weight.dtype)
    )
    return model


REFUSED = {
    "a mixture": (lambda: mixture(TERNARY), r"model\.layers\.0\.mlp holds experts, and mixtures are not exported"),
    "nothing": (lambda: pico.PICO["llama"](), "has no quantized layers to export"),
    "two formats": (
        lambda: mixed(packed_model("llama", INT4)),
        r"layers the same. Found symmetric int4 with group_size 32 \(.*symmetric int8 with group_size -1 \(",
    ),
    "other bits": (
        lambda: packed_model("llama", IntegerBits(format="int6")),
        r"q_proj is int6; GPTQ files hold int2, int3, int4, int8: quantize it so",
    ),
    "no integers": (lambda: nf4(packed_model("llama", INT4)), r"up_proj is nf4; GPTQ files hold"),
    "factors": (
        lambda: packed_model("llama", IntegerBits(format="int4", method="awq")),
        r"has a factor for every input \(method: awq\)",
    ),
    "scales": (
        lambda: packed_model("llama", IntegerBits(format="int4", scale_dtype="float32")),
        "has scales in float32, GPTQ files hold float16: quantize it with scale_dtype: float16",
    ),
    "groups": (
        lambda: packed_model("llama", IntegerBits(format="int4", group_size=48)),
        "has 64 inputs, which group_size 48 does not divide",
    ),
    "sizes": (
        lambda: packed_model("llama", IntegerBits(format="int4"), ffn=72),
        "is 64 by 72, which does not pack to whole",
    ),
    "the head": (
        lambda: packed_model("llama", INT4, roles=["ffn", "head"]),
        "lm_head is quantized, but GPTQ files hold",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gptq_files_cannot_hold(case, tmp_path):
    build, message = REFUSED[case]
    with pytest.raises(FormatError, match=message):
        gptq.export(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    spec = IntegerBits(format="int4", group_size=48, scale_dtype="bfloat16")
    with pytest.raises(FormatError) as error:
        gptq.export(packed_model("llama", spec), tmp_path)
    assert [word in line for word, line in zip(["bfloat16", "48"], str(error.value).splitlines(), strict=True)] == [
        True
    ] * 2


def test_damage_on_the_way_is_found_and_nothing_is_written(tmp_path, monkeypatch):
    gptq.export(packed_model("llama", INT4), tmp_path / "out")
    before = tensors_in(tmp_path / "out")
    packed = gptq.pack_words
    monkeypatch.setattr(gptq, "pack_words", lambda codes, bits: packed(codes, bits).flip(0))
    with pytest.raises(SaveError, match=r"weight was read back other than it was written"):
        gptq.export(packed_model("llama", IntegerBits(format="int8")), tmp_path / "out")
    assert tensors_in(tmp_path / "out").keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_in(tmp_path / "out").items())
    assert settings_in(tmp_path / "out")["bits"] == 4


def test_the_command(tmp_path):
    packed_model("llama", INT4).save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--to", "gptq"])
    assert done.exit_code == 0, done.stderr
    assert str(tmp_path / "out") in done.stdout
    assert torch.equal(logits(load_model(tmp_path / "out")), logits(load_model(tmp_path / "model")))
    for to, said in (("gpt", "did you mean gptq?"), ("onnx", "choose gptq")):
        wrong = CliRunner().invoke(app, [*arguments, "--to", to])
        assert wrong.exit_code == 2
        assert said in wrong.stderr


def test_every_exporter_is_there():
    for name in EXPORTERS:
        assert callable(exporter(name))
    with pytest.raises(RequestError, match="there is no export to tflite"):
        exporter("tflite")
