"""A finished model through every door of transformers: auto classes, pipelines, types, copies, shards, variants."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    pipeline,
)

from mote_quant.errors import ArtifactError
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from tests import pico
from tests.finished import BITS, finished
from tests.mixtures import logits


@pytest.fixture(scope="module")
def model(packed):
    return AutoModelForCausalLM.from_pretrained(packed)


@pytest.fixture(scope="module")
def wanted(model):
    return logits(model)


def relative(found, wanted) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


# --- auto classes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["float32", "int8"])
def test_a_model_without_its_head_and_with_it_again(head, tmp_path):
    whole = finished("llama", BITS | {"head": head})
    whole.save_pretrained(tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(body).__name__ == "LlamaModel"
    ids = torch.arange(10, 24).view(2, 7)
    with torch.no_grad():
        expected = whole.model(ids).last_hidden_state
        assert torch.equal(body(ids).last_hidden_state, expected)
        body.save_pretrained(tmp_path / "body")
        again = AutoModel.from_pretrained(tmp_path / "body")
        assert torch.equal(again(ids).last_hidden_state, expected)
        headed = AutoModelForCausalLM.from_pretrained(tmp_path / "body")
        assert torch.equal(headed.model(ids).last_hidden_state, expected)
    headed.save_pretrained(tmp_path / "headed")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "headed")), logits(headed))


def test_the_body_of_a_vlm(packed_vlm):
    whole = AutoModelForImageTextToText.from_pretrained(packed_vlm)
    body = AutoModel.from_pretrained(packed_vlm)
    given = pico.inputs(whole)
    given.pop("labels")
    with torch.no_grad():
        assert torch.equal(body(**given).last_hidden_state, whole.model(**given).last_hidden_state)


def test_another_head(packed):
    model = AutoModelForSequenceClassification.from_pretrained(packed, num_labels=3)
    assert blocks(model).keys() == {"model.layers.0.mlp", "model.layers.1.mlp"}
    assert model(torch.arange(10, 16).view(1, 6)).logits.shape == (1, 3)


def test_a_name_that_leads_nowhere_is_damage_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("mote_quant.hf.stored.fingerprint", lambda structure: None)
    monkeypatch.setattr("mote_quant.hf.quantizer.fingerprint", lambda structure: None)
    finished("llama", BITS).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"model.layers.1.self_attn.q_proj"', '"model.layers.7.self_attn.q_proj"')
    )
    with pytest.raises(ArtifactError, match="does not fit this model"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_vlm_is_no_causal_language_model(packed_vlm):
    with pytest.raises(ValueError, match=r"Unrecognized configuration class .*LlavaConfig"):
        AutoModelForCausalLM.from_pretrained(packed_vlm)


def test_pipelines_by_folder_and_by_model(packed, packed_vlm, model):
    settings = {"max_new_tokens": 4, "do_sample": False}
    write = pipeline("text-generation", model=str(packed))
    text = write("hello", **settings)
    assert text[0]["generated_text"].startswith("hello")
    assert pipeline("text-generation", model=model, tokenizer=write.tokenizer)("hello", **settings) == text
    assert write(["hello", "a"], batch_size=2, **settings)[0] == text
    look = pipeline("image-text-to-text", model=str(packed_vlm))
    told = look(images=Image.new("RGB", (16, 16)), text="<image> hello", **settings)
    assert told[0]["generated_text"].startswith("<image> hello")


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "within"), [("bfloat16", 0.05), ("float16", 0.01), ("float32", 0.0), ("auto", 0.0)])
def test_types_are_those_of_computing_not_of_what_is_packed(asked, within, packed, model, wanted):
    loaded = AutoModelForCausalLM.from_pretrained(packed, dtype=asked)
    dtype = getattr(torch, asked) if asked != "auto" else torch.float32
    assert loaded.dtype == logits(loaded).dtype == dtype
    assert relative(logits(loaded), wanted) <= within
    kept = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(kept[name], buffer), name
        assert kept[name].dtype == buffer.dtype, name
    assert {block.gate.weight.dtype for block in blocks(loaded).values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")
def test_the_old_name_of_the_type_and_the_slim_way_to_load(packed, wanted):
    loaded = AutoModelForCausalLM.from_pretrained(packed, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)
    assert loaded.dtype == torch.bfloat16
    assert relative(logits(loaded), wanted) < 0.05


CASTS = {
    "half": (lambda m: m.half(), torch.float16, 0.01),
    "float": (lambda m: m.bfloat16().float(), torch.float32, 0.05),
    "to": (lambda m: m.to(torch.bfloat16), torch.bfloat16, 0.05),
    "double": (lambda m: m.double(), torch.float64, 0.01),
}


@pytest.mark.filterwarnings("ignore:.*plain torch")
@pytest.mark.parametrize("name", CASTS)
def test_casting_a_loaded_model(name, packed, wanted):
    cast, dtype, within = CASTS[name]
    loaded = AutoModelForCausalLM.from_pretrained(packed)
    layer = loaded.model.layers[0].self_attn.q_proj
    stored = {key: (value.dtype, value.clone()) for key, value in layer.named_buffers()}
    cast(loaded)
    assert loaded.dtype == dtype
    assert relative(logits(loaded), wanted) < within
    assert all(value.dtype == stored[key][0] for key, value in layer.named_buffers())
    assert all(torch.equal(value, stored[key][1]) for key, value in layer.named_buffers())


# --- copies ----------------------------------------------------------------------------------------------------------


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch])
def test_copies_compute_the_same_and_save_themselves(copied, model, wanted, tmp_path):
    other = copied(model)
    assert torch.equal(logits(other), wanted)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    other.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), 2 * wanted)
    assert torch.equal(logits(model), wanted)
    assert other.half().dtype == torch.float16
    assert model.dtype == torch.float32


# --- files -----------------------------------------------------------------------------------------------------------


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if "safetensors" in path.name}


def test_shards_and_variants_take_the_place_of_what_was_there(model, wanted, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    sharded = names(tmp_path)
    assert len(sharded) > 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), wanted)
    model.save_pretrained(tmp_path, variant="ours", max_shard_size="20KB")
    assert names(tmp_path).isdisjoint(sharded)
    assert "model.safetensors.index.ours.json" in names(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path, variant="ours")), wanted)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="ours")
    assert names(tmp_path) == {"model.ours.safetensors"}
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path, variant="ours")), wanted)


def test_a_damaged_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=shard.name):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises((ArtifactError, OSError), match=shard.name):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "out", is_main_process=True)
    assert names(tmp_path / "out") == {"model.safetensors"}


def test_packed_layers_say_what_they_are(model):
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(layers) == 2 * (4 + 3 + 4 * 3)
    assert {module.spec.format for module in layers} == {"ternary", "int4", "int8"}
