"""Requests that cannot be met: one clear error each, before anything is changed or written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import (
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from mote_quant.errors import (
    AlreadyMoEError,
    ArtifactError,
    BadWeightsError,
    DataError,
    FormatError,
    ModelError,
    MoteError,
    RecipeError,
    RequestError,
    SaveError,
    TargetError,
    UnsupportedModelError,
)
from mote_quant.fingerprint import weights_hash
from mote_quant.hf.loading import load_model
from mote_quant.hf.saving import stored_bytes
from mote_quant.inspection import inspect
from mote_quant.pipeline import Options, apply
from mote_quant.planning import plan
from mote_quant.steps import Silent
from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, TRAIN
from tests.sources import source_for


def recipe(bits: dict | None = None, train: dict | None = None, **upcycle) -> dict:
    steps = [{"upcycle": upcycle}, *([{"train": TRAIN | train}] if train is not None else [])]
    return {"name": "bad", "bits": bits or {}, "pipeline": [*steps, *([{"quantize": {}}] if bits else [])]}


def refused(kind: type[MoteError], match: str, made: dict, model, tmp_path, data=None) -> None:
    """`apply` raises, the model is as it was, and no model lies in the folder."""
    before = weights_hash(model)
    with pytest.raises(kind, match=match):
        apply(made, model, data=data or source_for(pico.PICO["llama"]()), output=tmp_path / "out")
    assert weights_hash(model) == before
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_model_without_a_recognisable_feed_forward(tmp_path):
    config = MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2)
    model = MambaForCausalLM(config).eval()
    refused(UnsupportedModelError, "feed-forward", recipe(TERNARY), model, tmp_path)


def test_what_is_no_language_model(tmp_path):
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 24,
        "image_size": 16,
        "patch_size": 8,
    }
    vision = ViTForImageClassification(ViTConfig(hidden_size=16, **sizes))
    refused(ModelError, "ViTForImageClassification is no language model", recipe(TERNARY), vision, tmp_path)
    refused(ModelError, "Linear is no language model", recipe(TERNARY), nn.Linear(4, 4), tmp_path)


def test_a_model_that_is_a_mixture_already(tmp_path):
    refused(AlreadyMoEError, "expert", recipe(TERNARY), pico.qwen2_moe(), tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    model = pico.PICO["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    refused(
        BadWeightsError,
        r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinite",
        recipe(TERNARY),
        model,
        tmp_path,
    )


def test_no_data(tmp_path):
    model = pico.PICO["llama"]()
    empty = dataclasses.replace(source_for(model), train=[])
    with pytest.raises(DataError, match="no training samples"):
        apply(recipe(TERNARY, train={}), model, data=empty, output=tmp_path)


@pytest.mark.parametrize(
    ("kind", "match", "made"),
    [
        (TargetError, "atention.*attention", recipe(TERNARY | {"atention": "int8"})),
        (TargetError, "vision", recipe(TERNARY | {"vision": "int8"})),
        (TargetError, "layers.9", recipe(TERNARY | {"model.layers.9.*": "int8"})),
        (TargetError, "routd", recipe(TERNARY, train={"what": ["routd"]})),
        (TargetError, "learning_rates.*routr", recipe(TERNARY, train={"learning_rates": {"routr": 1.0e-3}})),
        (TargetError, "learning_rates.*shared", recipe(TERNARY, train={"learning_rates": {"shared": 1.0e-3}})),
        (FormatError, "router.*int8.*float32", recipe({"router": "int8"})),
        (FormatError, "router.*bfloat16.*float32", recipe({"router": "bfloat16"})),
        (FormatError, "norm.*int4", recipe(TERNARY | {"norm": "int4"})),
        (FormatError, "embed_tokens.*int8", recipe({"embedding": "int8"})),
        (FormatError, "shared.*ternary", recipe({"shared": {"format": "ternary"}})),
        (FormatError, "group_size 64.*32 input", recipe({"shared": {"format": "int4", "group_size": 64}})),
        (FormatError, "norm.*cannot be bfloat16 while", recipe({"norm": "bfloat16"})),
        (RecipeError, "shared: none", recipe(TERNARY | INT4_SHARED, shared="none", top_k=2)),
        (RecipeError, "shared: none", recipe(TERNARY, train={"what": ["shared"]}, shared="none", top_k=2)),
        (RecipeError, "top_k", recipe(TERNARY, experts=2, top_k=3)),
        (RecipeError, "gptq looks at samples", recipe({"shared": {"format": "int4", "method": "gptq"}})),
        (RequestError, r"layers: \[5\] have no feed-forward", recipe(TERNARY, layers=[5])),
        (FormatError, "are trained alike, down_proj .*int4", recipe({"*experts.0.down_proj": "int4"} | TERNARY)),
        (FormatError, "are trained alike.*none", recipe({"*experts.0*": {"format": "ternary"}})),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(tmp_path, kind, match, made):
    refused(kind, match, made, pico.PICO["llama"](), tmp_path)
    # A folder that a slip has taken would refuse the recipe once it is mended.
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_depth_for_hidden_states_is_refused_before_the_run(tmp_path):
    pico.PICO["llama"](num_hidden_layers=3).save_pretrained(tmp_path / "teacher")
    made = recipe(TERNARY, train={"distill": {"teacher": str(tmp_path / "teacher"), "hidden": 1.0}})
    refused(ModelError, r"distill\.hidden: .* has 3 decoder layers", made, pico.PICO["llama"](), tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_cache_of_lessons_that_is_a_file_is_refused_before_the_run(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("not to be deleted")
    made = recipe(TERNARY, train={"distill": {"teacher": "any", "cache": str(file)}})
    match = r"distill\.cache: .*train\.jsonl is a file; name a folder"
    refused(RequestError, match, made, pico.PICO["llama"](), tmp_path)
    assert not (tmp_path / "out").exists()
    assert file.read_text() == "not to be deleted"


def test_a_tied_head_cannot_be_packed(tmp_path):
    refused(FormatError, "tied", recipe(TERNARY | {"head": "int8"}), pico.PICO["qwen2"](), tmp_path)


def test_a_conv1d_cannot_be_cast_alone(tmp_path):
    refused(
        FormatError, "only linear layers cast on use", recipe({"shared": "bfloat16"}), pico.PICO["gpt2"](), tmp_path
    )


def test_two_ternary_formats_in_one_layer(tmp_path):
    made = recipe({"*.experts.2.up_proj": {"format": "ternary", "packing": "base3"}, "routed": {"format": "ternary"}})
    refused(FormatError, "are trained alike.*given packing", made, pico.PICO["llama"](), tmp_path)


def test_ternary_in_one_layer_and_integers_in_the_other_is_fine(tmp_path):
    model = pico.PICO["llama"]()
    made = recipe({"*.layers.0.*experts*": {"format": "ternary"}, "*.layers.1.*experts*": "int4"})
    apply(made, model, output=tmp_path)
    assert inspect(tmp_path)["stored_bytes"] == plan(made, pico.PICO["llama"]()).result.stored_bytes


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    refused(SaveError, "out cannot be used", recipe(TERNARY), pico.PICO["llama"](), tmp_path)


def test_a_read_only_folder(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", read_only)
    model = pico.PICO["llama"]()
    with pytest.raises(SaveError, match="Permission denied"):
        apply(recipe(TERNARY), model, data=source_for(model), output=tmp_path / "out")


def test_a_disk_that_fills_up_at_the_end_can_be_freed_and_the_run_resumed(tmp_path, monkeypatch):
    made, model = recipe(TERNARY, train={}), pico.PICO["llama"]()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(SaveError, match="No space left"):
            apply(made, model, data=source_for(model), output=tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    model = pico.PICO["llama"]()
    apply(made, model, data=source_for(model), output=tmp_path / "out")
    inspect(tmp_path / "out")


def test_models_that_cannot_be_loaded(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("transformers.AutoConfig.from_pretrained", offline)
        with pytest.raises(ModelError, match=r"couldn't connect.*hub id while online"):
            load_model("nobody/nothing-of-that-name")
    pico.PICO["llama"]().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="could not be loaded"):
        load_model(str(tmp_path))
    weights.unlink()
    with pytest.raises(ArtifactError, match="holds no weight files"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        inspect(tmp_path)


def test_a_model_quantized_by_somebody_else():
    config = pico.PICO["llama"]().config
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match="already quantized with gptq"):
        plan(recipe(TERNARY), config)


def test_no_model_at_all():
    with pytest.raises(RequestError, match="name a model"):
        plan(recipe(TERNARY))
    with pytest.raises(MoteError):
        plan(recipe(TERNARY), "no-such-facts")


MODELS = {
    "a name": ("some//model", "some//model could not be loaded.*give the path of a model folder, or a hub id"),
    "nothing": (None, "not None: load it"),
    "no head": (lambda: LlamaModel(pico.PICO["llama"]().config), "LlamaModel has no language-model head"),
    "encoder and decoder": (
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=96, d_model=8, d_ff=8, d_kv=4, num_layers=1)),
        "T5ForConditionalGeneration is an encoder-decoder",
    ),
    "no weights": (lambda: pico.PICO["llama"]().to("meta"), r"embed_tokens\.weight is on the meta device"),
}


@pytest.mark.parametrize("case", MODELS)
def test_what_is_no_model_to_work_on(case):
    model, match = MODELS[case]
    with pytest.raises(ModelError, match=match):
        apply(recipe(TERNARY), model() if callable(model) else model)


def test_tokens_that_the_model_does_not_have(tmp_path):
    small, model = pico.PICO["llama"](vocab_size=50), pico.PICO["llama"]()
    with pytest.raises(DataError, match=r"pico: its tokens go up to number \d\d, this model has 50"):
        apply(recipe(TERNARY, train={}), small, data=source_for(model))


def test_questions_about_images_for_a_text_model():
    model = pico.PICO["llama"]()
    pictures = dataclasses.replace(source_for(model), kind="vqa")
    with pytest.raises(DataError, match="pico asks about images, LlamaForCausalLM takes text only"):
        apply(recipe(TERNARY, train={}), model, data=pictures)


def test_data_with_an_empty_name():
    with pytest.raises(DataError, match="data is empty"):
        apply(recipe(TERNARY), pico.PICO["llama"](), data="")


class FullError(SaveError):
    """What a test throws."""


def failing(title: str, error: Exception) -> Options:
    class Fails(Silent):
        def start(self, now: str, total: int) -> None:
            if now == title:
                raise error

    return Options(progress=Fails())


def test_a_failed_run_says_whether_the_model_was_changed():
    model = pico.PICO["llama"]()
    made, data = recipe(TERNARY, train={}), source_for(model)
    with pytest.raises(FullError) as untouched:
        apply(made, model, data=data, options=failing("up-cycling", FullError("full")))
    assert str(untouched.value) == "full"
    with pytest.raises(FullError) as changed:
        apply(made, model, data=data, options=failing("quantizing", FullError("full")))
    assert str(changed.value) == "full; the model object was changed; load it again before retrying"
    assert changed.value.message == "full"


@pytest.mark.parametrize("content", [b"1234", (1000).to_bytes(8, "little") + b"{}"])
def test_a_weight_file_shorter_than_its_header(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors has \d+ bytes, less than its header"):
        stored_bytes(tmp_path)
