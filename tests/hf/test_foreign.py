"""Checkpoints of other libraries become packed layers of the same codes; what cannot be read says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import GenerationConfig

import mote_quant
from mote_quant.errors import ArtifactError, FormatError, MoteError
from mote_quant.formats import Codes
from mote_quant.formats.integer import BITS
from mote_quant.hf import loading
from mote_quant.hf.foreign import gptq
from mote_quant.hf.foreign.words import pack_words, unpack_words
from mote_quant.hf.loading import load_model, skeleton_in
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits
from tests import foreign, pico
from tests.foreign import compressed_config, compressed_group, packed_layers, packed_model, write, write_as
from tests.mixtures import TERNARY, logits, recipe

INT4 = IntegerBits(format="int4", group_size=32)
METHODS = {
    "gptq": (2, 3, 4, 8),
    "gptq_v2": (2, 3, 4, 8),
    "awq": (2, 3, 4, 5, 6, 8),
    "compressed-tensors": (2, 3, 4, 5, 6, 8),
    "int-quantized": (8,),
}


def same(found: Any, expected: Any) -> None:
    """The same layers with the same codes, scales, zero points and biases; the same dense weights."""
    ours, theirs = packed_layers(found), packed_layers(expected)
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert torch.equal(layer.codes(), theirs[name].codes()), name
        assert layer.weight_scale.dtype == theirs[name].weight_scale.dtype
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    # A model that was cast to 16 bits has rotary tables of 16 bits, one that was loaded has not.
    assert expected.dtype != torch.float32 or torch.equal(logits(found), logits(expected))


@st.composite
def cases(draw: Any) -> tuple[str, IntegerBits, str, torch.dtype]:
    method = draw(st.sampled_from(sorted(METHODS)))
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32"]))
    spec = IntegerBits(
        format=f"int{draw(st.sampled_from(METHODS[method]))}",
        group_size=draw(st.sampled_from([-1, 16, 32])),
        symmetric=draw(st.booleans()),
        scale_dtype=dtype,
    )
    return method, spec, draw(st.sampled_from(["llama", "qwen2"])), getattr(torch, dtype)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_any_of_their_models_is_read_exactly(case, tmp_path_factory):
    method, spec, family, dtype = case
    model = packed_model(family, spec, dtype=dtype, layers=1)
    folder = write_as(method, model, tmp_path_factory.mktemp("foreign"))
    found = load_model(folder)
    same(found, model)
    assert {layer.spec.format for layer in packed_layers(found).values()} == {spec.format}
    assert found.dtype == dtype


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_words_are_one_stream_of_bits(data):
    bits, count = data.draw(st.sampled_from([2, 3, 4, 5, 6, 8])), data.draw(st.integers(1, 70))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    packed = pack_words(torch.tensor(rows, dtype=torch.uint8), bits)
    assert torch.equal(packed, foreign.words(rows, bits))
    assert unpack_words(packed, bits, count).tolist() == rows


def test_words_of_another_number_are_refused():
    with pytest.raises(FormatError, match=r"packed words must be torch.int32 \[2, 3\]"):
        unpack_words(torch.zeros(2, 4, dtype=torch.int32), 4, 24)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llava", "qwen2_5_vl"])
def test_every_family_in_several_files(family, method, tmp_path):
    model = packed_model(family, INT4)
    spec = next(iter(packed_layers(model).values())).spec
    stores = {"gptq": foreign.gptq(), "awq": foreign.awq, "compressed-tensors": foreign.compressed}[method]
    config = {
        "gptq": foreign.gptq_config(spec),
        "awq": foreign.awq_config(spec),
        "compressed-tensors": compressed_config(compressed_group(spec, "Linear", "Conv1D")),
    }[method]
    same(load_model(write(model, tmp_path, config, stores, shards=3)), model)


def test_older_names_of_a_vlm_are_found(tmp_path):
    model = packed_model("llava", INT4)
    folder = write_as("gptq", model, tmp_path, dynamic={r".*language_model\.layers\.0\..*": {"group_size": 32}})
    tensors = load_file(folder / "model.safetensors")
    old = {name.replace("model.language_model.", "language_model.model.", 1): t for name, t in tensors.items()}
    old = {name.replace("model.vision_tower.", "vision_tower.", 1): t for name, t in old.items()}
    assert old.keys() != tensors.keys()
    foreign.save(old, folder)
    same(load_model(folder), model)


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_a_skeleton_is_made_of_headers_alone(method, tmp_path, monkeypatch):
    model = packed_model("llama", INT4, dtype=torch.float16)
    folder = write_as(method, model, tmp_path)

    def read(*args: Any) -> Codes:
        raise AssertionError("read the weights")

    for reader in (gptq.Gptq, mote_quant.hf.foreign.CompressedTensors):
        monkeypatch.setattr(reader, "codes", read)
    skeleton = skeleton_in(folder)
    described = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in skeleton.state_dict().items()} == described
    assert {t.device.type for t in skeleton.state_dict().values()} == {"meta"}
    planned = mote_quant.plan(recipe(TERNARY), folder)
    assert planned.dense.roles["ffn"].bits == pytest.approx(4.5)


def test_an_existing_dense_folder_has_the_skeleton_of_its_config(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path)
    assert not packed_layers(skeleton_in(tmp_path))
    assert torch.equal(logits(mote_quant.load_model(tmp_path)), logits(pico.PICO["llama"]()))


def test_what_is_read_is_one_of_our_models_and_saves_as_such(tmp_path):
    model = load_model(write_as("gptq", packed_model("qwen2", INT4, dtype=torch.float16), tmp_path / "theirs"))
    model.save_pretrained(tmp_path / "ours")
    same(load_model(tmp_path / "ours"), model)
    assert mote_quant.inspect(tmp_path / "ours")["roles"]["ffn"]["bits"] == pytest.approx(4.5)
    assert mote_quant.inspect(tmp_path / "theirs")["roles"] == mote_quant.inspect(tmp_path / "ours")["roles"]


def test_generation_settings_come_along(tmp_path):
    folder = write_as("gptq", packed_model("llama", INT4), tmp_path)
    GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=7).save_pretrained(folder)
    model = load_model(folder)
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (3, 7)


def test_a_hub_model_is_downloaded_when_transformers_could_not_read_it(tmp_path, monkeypatch):
    model = packed_model("llama", INT4)
    folder = write_as("gptq", model, tmp_path)
    config = loading.read_config(folder)
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name: config)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    same(load_model("somebody/llama-gptq"), model)
    ((name, patterns),) = asked
    assert name == "somebody/llama-gptq"
    assert {"*.json", "*.safetensors", "*.model"} <= set(patterns)


# gptq


def test_layers_may_differ_in_dynamic(tmp_path):
    model = packed_model("llama", INT4)
    wide = IntegerBits(format="int8", group_size=-1, symmetric=False)
    for name, layer in packed_layers(packed_model("llama", wide)).items():
        if name.endswith("down_proj"):
            model.set_submodule(name, layer)
    dynamic = {
        r"-:.*\.k_proj": {},
        r"+:.*\.down_proj": {"bits": 8, "group_size": -1, "sym": False},
        r".*": {"bits": 4},
        r".*\.up_proj": {"bits": 2},
    }
    config = foreign.gptq_config(INT4, dynamic=dynamic, group_size=32)
    found = load_model(write(model, tmp_path, config, foreign.gptq()))
    same(found, model)
    assert found.model.layers[1].mlp.down_proj.spec.format == "int8"
    assert found.model.layers[1].mlp.up_proj.spec.format == "int4"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_of_zero_survive_the_older_layout(bits, tmp_path):
    spec = IntegerBits(format=f"int{bits}", group_size=32, symmetric=False)
    model = packed_model("llama", spec, layers=1)
    for layer in packed_layers(model).values():
        layer.weight_zero.zero_()
    same(load_model(write_as("gptq", model, tmp_path)), model)


def test_groups_of_inputs_need_no_index(tmp_path):
    model = packed_model("llama", INT4)
    folder = write_as("gptq", model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    foreign.save({name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}, folder)
    same(load_model(folder), model)


def test_a_bias_of_zeros_where_the_model_has_none_is_dropped(tmp_path):
    model = packed_model("llama", INT4)
    folder = write_as("gptq", model, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(96)
    foreign.save(tensors, folder)
    same(load_model(folder), model)
    tensors["model.layers.0.mlp.up_proj.bias"][3] = 1.0
    foreign.save(tensors, folder)
    with pytest.raises(ArtifactError, match=r"layers\.0\.mlp\.up_proj\.bias is not zero"):
        load_model(folder)


# compressed-tensors


def test_the_nearest_target_means_a_layer(tmp_path):
    model = packed_model("llama", INT4)
    specs = {
        "re:.*mlp.*": IntegerBits(format="int3", group_size=16, symmetric=False),
        "model.layers.0.mlp.up_proj": IntegerBits(format="int8"),
    }
    for target, spec in specs.items():
        for name, layer in packed_layers(packed_model("llama", spec)).items():
            if name == target or (".mlp." in name and target.startswith("re:")):
                model.set_submodule(name, layer)
    groups = [compressed_group(spec, target) for target, spec in specs.items()]
    config = compressed_config(compressed_group(INT4), *groups)
    same(load_model(write(model, tmp_path, config, foreign.compressed)), model)


def test_one_scale_for_all_rows(tmp_path):
    spec = IntegerBits(format="int8")
    model = packed_model("llama", spec, layers=1)
    for layer in packed_layers(model).values():
        layer.weight_scale.fill_(0.013)
    group = compressed_group(spec)
    group["weights"]["strategy"] = "tensor"

    def stores(layer: PackedLinear, spec: IntegerBits) -> foreign.Tensors:
        return foreign.naive(layer, spec) | {"weight_scale": layer.weight_scale[:1, 0]}

    same(load_model(write(model, tmp_path, compressed_config(group), stores)), model)


def test_quantized_activations_are_left_out_and_told(tmp_path, caplog):
    model = packed_model("llama", IntegerBits(format="int8"))
    group = compressed_group(IntegerBits(format="int8"), input_activations={"num_bits": 8, "dynamic": True})
    folder = write(model, tmp_path, compressed_config(group, kv_cache_scheme={"num_bits": 8}), foreign.naive)
    with caplog.at_level(logging.WARNING):
        same(load_model(folder), model)
    assert "quantized activations; here only its weights" in caplog.text
    assert "key-value cache" in caplog.text


# What cannot be read


def spoil(folder: Path, changes: dict[str, Any]) -> None:
    """Change single tensors: a function of the old one, a new one, or None for none."""
    tensors = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        old = tensors.pop(name, None)
        if change is not None:
            tensors[name] = change(old) if callable(change) else change
    foreign.save(tensors, folder)


UP = "model.layers.0.mlp.up_proj"
TENSORS = {
    "shuffled groups": ("gptq", {f"{UP}.g_idx": lambda t: t.flip(0)}, rf"{UP} was quantized with desc_act: true"),
    "too few words": (
        "gptq",
        {f"{UP}.qweight": lambda t: t[:-1]},
        rf"{UP} cannot be read: qweight must be torch.int32",
    ),
    "no words": ("gptq", {f"{UP}.qzeros": None}, rf"{UP} cannot be read: .*lacks qzeros"),
    "no scales": ("gptq", {f"{UP}.scales": None}, rf"{UP}\.scales is missing"),
    "scales of doubles": (
        "gptq",
        {f"{UP}.scales": lambda t: t.double()},
        rf"{UP}\.scales: scales of type torch.float64",
    ),
    "scales that are not finite": (
        "gptq",
        {f"{UP}.scales": lambda t: t / 0},
        rf"{UP} cannot be read: weight_scale holds values that are not finite",
    ),
    "zero points that lie": (
        "gptq",
        {f"{UP}.qzeros": lambda t: t + 1},
        rf"{UP}\.qzeros: symmetric weights have zero points of 8, these are 8 to 9; .*checkpoint_format \(gptq\)",
    ),
    "the other layout": (
        "gptq_v2",
        {f"{UP}.qzeros": lambda t: t - 0x11111111},
        r"sym, or in checkpoint_format \(gptq_v2\)",
    ),
    "something else": ("gptq", {f"{UP}.lora_A": torch.ones(2)}, rf"{UP}\.lora_A is nothing that can be read here"),
    "no such layer": (
        "gptq",
        {"model.layers.7.x.qweight": torch.ones(2)},
        r"layers\.7\.x is stored quantized, but Llama",
    ),
    "no linear layer": (
        "gptq",
        {"model.embed_tokens.weight": None, "model.embed_tokens.qweight": torch.ones(2)},
        "model.embed_tokens is quantized and a Embedding; only linear layers",
    ),
    "a dense weight lost": ("gptq", {"model.norm.weight": None}, r"lacks model\.norm\.weight"),
    "awq zero points": (
        "awq",
        {f"{UP}.qzeros": lambda t: t + 1},
        rf"{UP}\.qzeros holds zero points, and the config says zero_point: false",
    ),
    "another shape": (
        "compressed-tensors",
        {f"{UP}.weight_packed": lambda t: t[:, :-1]},
        rf"{UP} cannot be read: weight_pa",
    ),
    "act order": (
        "compressed-tensors",
        {f"{UP}.weight_g_idx": torch.arange(64, dtype=torch.int32) % 2},
        rf"{UP} was quantized with actorder: group",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_cannot_be_read_are_named(case, tmp_path):
    method, changes, message = TENSORS[case]
    folder = write_as(method, packed_model("llama", INT4, layers=1), tmp_path)
    spoil(folder, changes)
    with pytest.raises(ArtifactError, match=message):
        load_model(folder)


CONFIGS = {
    "bits": ("gptq", {"bits": 5}, "has codes of 5 bits, which cannot be read; readable are 2, 3, 4, 8 bits"),
    "no bits": ("gptq", {"bits": None}, r"quantization_config\.bits cannot be read"),
    "groups": ("gptq", {"group_size": 0}, r"quantization_config\.group_size cannot be read: must be at least 1"),
    "layout": ("gptq", {"checkpoint_format": "bitblas"}, "GPTQ weights laid out as bitblas cannot be read"),
    "marlin": ("gptq", {"is_marlin_format": True}, "GPTQ weights laid out as marlin"),
    "words": ("gptq", {"pack_dtype": "int16"}, "codes packed in int16"),
    "a pattern": ("gptq", {"dynamic": {"+:*": {}}}, r"the pattern \* cannot be read"),
    "wrong group": ("gptq", {"group_size": 16}, r"cannot be read: qzeros must be torch.int32 \[6, 8\]"),
    "awq layout": ("awq", {"version": "gemv_fast"}, "AWQ weights laid out as gemv_fast"),
    "awq bits": ("awq", {"bits": 7}, "codes of 7 bits, which cannot be read; readable are 2, 3, 4, 5, 6, 8 bits"),
    "sparse": (
        "compressed-tensors",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        r"sparse weights \(sparse-24",
    ),
    "rotated": ("compressed-tensors", {"transform_config": {"a": {}}}, "weights rotated for their inputs"),
    "not compressed": ("compressed-tensors", {"quantization_status": "frozen"}, "weights that are frozen"),
    "no group": ("compressed-tensors", {"config_groups": {}}, "no config group means model.layers.0"),
    "floats": (
        "compressed-tensors",
        {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}},
        "holds float of 8 bits by None, which cannot be read",
    ),
    "another method": (
        "gptq",
        {"quant_method": "hqq"},
        "weights quantized with hqq cannot be read, only with gptq, awq",
    ),
    "none": ("gptq", {"quant_method": None}, "weights quantized with None cannot be read"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_cannot_be_read_are_named(case, tmp_path):
    method, changes, message = CONFIGS[case]
    folder = write_as(method, packed_model("llama", INT4, layers=1), tmp_path, **changes)
    for act in (load_model, skeleton_in) if case != "wrong group" else (load_model,):
        with pytest.raises(ArtifactError, match=message):
            act(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    model = packed_model("llama", INT4, layers=1)
    return {method: write_as(method, model, tmp_path_factory.mktemp(method)) for method in foreign.METHODS}


plain = st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats(allow_nan=False) | st.text(max_size=4)
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner))


def refusal(folder: Path) -> str:
    try:
        skeleton_in(folder)
    except MoteError as error:
        return str(error)
    return ""


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_config_that_says_anything_is_read_or_refused(data, folders):
    path = folders[data.draw(st.sampled_from(sorted(folders)))] / "config.json"
    whole = path.read_text()
    config = json.loads(whole)
    place = config["quantization_config"]
    while nested := [value for value in place.values() if isinstance(value, dict) and value]:
        if data.draw(st.booleans()):
            break
        place = data.draw(st.sampled_from(nested))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(anything)
    path.write_text(json.dumps(config))
    said = refusal(path.parent)
    path.write_text(whole)
    assert "could not be loaded" not in said, "nobody foresaw this"


def test_a_folder_that_is_not_whole(tmp_path):
    model = packed_model("llama", INT4, layers=1)
    folder = write(model, tmp_path, foreign.gptq_config(INT4), foreign.gptq(), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(ArtifactError, match=r"00002-of-00002\.safetensors cannot be read"):
        load_model(folder)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"00002-of-00002\.safetensors is missing"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"index\.json cannot be read"):
        load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ArtifactError, match="holds no weight files"):
        load_model(folder)


def test_a_folder_that_is_said_to_be_quantized_and_is_not(tmp_path):
    model = pico.PICO["llama"]()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": foreign.gptq_config(INT4)}))
    with pytest.raises(ArtifactError, match="said to be quantized, but holds no quantized layer"):
        load_model(tmp_path)


def test_the_index_decides_which_files_count(tmp_path):
    model = packed_model("llama", INT4, layers=1)
    folder = write(model, tmp_path, foreign.gptq_config(INT4), foreign.gptq(), shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"nothing to read")
    same(load_model(folder), model)


def test_bits_of_all_formats_are_covered():
    assert set(gptq.BITS) == set(METHODS["gptq"])
    assert set(METHODS["compressed-tensors"]) == set(BITS.values())
