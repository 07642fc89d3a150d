"""A run that goes through a folder stage by stage makes what a run in memory makes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.families.builders.experts import EXPERTS as EXPERTS_OF
from eval.families.builders.vision import VISION
from mote_quant import pipeline
from mote_quant.errors import ArtifactError, FingerprintError, ModelError
from mote_quant.inspection import inspect
from mote_quant.journal import Run
from mote_quant.planning import plan
from mote_quant.progress import NOTICE
from mote_quant.recipe import load
from mote_quant.streaming import streamable
from tests import pico
from tests.mixtures import CALIBRATION, INT4_SHARED, TERNARY, logits
from tests.sources import source_for
from tests.stopping import Stop, StopError

UPCYCLE = {"upcycle": {"noise": 0.1, "combine": "zero_init", "router_std": 0.3}}
GPTQ = {"format": "int4", "group_size": 16, "method": "gptq"}
RTN = {"name": "rtn", "bits": TERNARY | INT4_SHARED | {"attention": "int8"}, "pipeline": [UPCYCLE, {"quantize": {}}]}
DENSE = {"name": "dense", "bits": {"ffn": GPTQ, "attention": GPTQ}, "pipeline": [{"quantize": CALIBRATION}]}
HALF = {"name": "half", "bits": {"*": "float16"} | DENSE["bits"], "pipeline": [{"quantize": {}}]}
MOE = {
    "name": "moe",
    "bits": {"routed": GPTQ, "head": "int8", "router": "float32"},
    "pipeline": [{"upcycle": {"shared": "none", "top_k": 2, "noise": 0.1}}, {"quantize": CALIBRATION}],
}


def both(recipe, family, folder, **sizes):
    """(streamed, in memory): the same recipe on the same model."""
    model = pico.PICO[family](layers=3, **sizes)
    model.save_pretrained(folder / "dense")
    data = source_for(model)
    streamed = pipeline.apply(recipe, folder / "dense", data=data, output=folder / "streamed")
    return streamed, pipeline.apply(recipe, model, data=data, output=folder / "memory")


def differing(streamed, memory) -> list[str]:
    ours, theirs = streamed.state_dict(), memory.state_dict()
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt", "gemma2", "llava", "qwen2_5_vl"])
def test_up_cycling_and_rounding_are_the_same_to_the_bit(family, tmp_path):
    streamed, memory = both(RTN, family, tmp_path)
    assert differing(streamed, memory) == []
    assert type(streamed) is type(memory)
    torch.testing.assert_close(logits(streamed), logits(memory))
    ours, theirs = (
        json.loads((tmp_path / kind / "run" / "report.json").read_text()) for kind in ("streamed", "memory")
    )
    assert ours["bytes"] == theirs["bytes"]
    assert ours["preservation"] == theirs["preservation"] == {"max_abs": 0.0, "relative": 0.0}
    assert inspect(tmp_path / "streamed")["stored_bytes"] == ours["bytes"]["predicted"]
    assert not (tmp_path / "streamed" / "run" / "stages").exists()
    cards = [(tmp_path / kind / "README.md").read_text() for kind in ("streamed", "memory")]
    assert cards[0] == cards[1] != ""


def test_calibrated_codes_and_the_report_of_them_are_the_same(tmp_path):
    streamed, memory = both(DENSE, "llama", tmp_path)
    assert differing(streamed, memory) == []
    ours, theirs = (
        json.loads((tmp_path / kind / "run" / "report.json").read_text()) for kind in ("streamed", "memory")
    )
    (ours,), (theirs,) = ours["steps"], theirs["steps"]
    for note in [*ours["modules"].values(), *theirs["modules"].values()]:
        note.pop("seconds")
    assert ours["modules"] == theirs["modules"]
    assert ours["outputs"] == theirs["outputs"]
    assert ours["calibration"] == theirs["calibration"]


def test_full_precision_mixtures_too_with_types_of_all_kinds(tmp_path):
    streamed, memory = both(MOE, "qwen2", tmp_path, tie_word_embeddings=False)
    routed = [name for name in differing(streamed, memory) if ".experts." not in name]
    # Calibration sees the norms and the router in their final types here, before they are cast there.
    assert routed == []
    torch.testing.assert_close(logits(streamed), logits(memory), rtol=0.05, atol=0.05)


EXPERTS = {"name": "experts", "bits": {"routed": GPTQ, "shared": "int8"}, "pipeline": [{"quantize": CALIBRATION}]}


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral"])
def test_experts_that_a_model_came_with_are_streamed_one_by_one(family, tmp_path, caplog):
    recipe = EXPERTS if family == "qwen2_moe" else EXPERTS | {"bits": {"routed": GPTQ}}
    model = pico.NATIVE_MOE[family](layers=3)
    model.save_pretrained(tmp_path / "dense")
    data = source_for(model)
    with caplog.at_level("INFO"):
        streamed = pipeline.apply(recipe, tmp_path / "dense", data=data, output=tmp_path / "streamed")
    assert "held in memory" not in caplog.text
    assert differing(streamed, pipeline.apply(recipe, model, data=data, output=tmp_path / "memory")) == []


def test_experts_that_stay_fused_are_held_in_memory_and_it_is_told(tmp_path, caplog):
    pico.NATIVE_MOE["mixtral"]().save_pretrained(tmp_path / "dense")
    recipe = {"name": "attention", "bits": {"attention": "int8"}, "pipeline": [{"quantize": {}}]}
    with caplog.at_level("INFO"):
        pipeline.apply(recipe, tmp_path / "dense", output=tmp_path / "out")
    assert "experts that no rule takes apart are fused" in caplog.text


def test_a_model_may_change_its_type(tmp_path):
    recipe = {"name": "half", "bits": {"ffn": "int8", "re:.*": "float16"}, "pipeline": [{"quantize": {}}]}
    streamed, memory = both(recipe, "gemma2", tmp_path)
    assert differing(streamed, memory) == []
    assert streamed.dtype == torch.float16


@pytest.mark.parametrize(
    ("step", "bits", "said"),
    [
        ({"train": {"what": ["attention"], "data": "x", "steps": 1}}, {}, "optional upcycle and a quantize"),
        (
            {"quantize": CALIBRATION},
            {"ffn": {"format": "auto", "choices": ["int8", "int4"], "average_bits": 5}},
            "auto",
        ),
        ({"quantize": {"keep_latents": True}}, {"ffn": "int8"}, "keep_latents"),
        ({"quantize": CALIBRATION}, {"ffn": GPTQ, "norm": "bfloat16"}, "before any of it is cast"),
    ],
)
def test_what_cannot_be_streamed_says_why(step, bits, said):
    assert said in (streamable(load({"name": "no", "bits": bits, "pipeline": [step]})) or "")
    assert streamable(load(RTN)) is None


def test_what_cannot_be_streamed_is_done_in_memory_and_told(tmp_path, caplog):
    model = pico.PICO["llama"]()
    model.save_pretrained(tmp_path / "dense")
    recipe = RTN | {"pipeline": [UPCYCLE, {"quantize": {"keep_latents": True}}]}
    with caplog.at_level("INFO"):
        made = pipeline.apply(recipe, tmp_path / "dense", output=tmp_path / "out")
    assert "held in memory: keep_latents" in caplog.text
    assert torch.equal(logits(made), logits(pipeline.apply(recipe, model)))


def test_without_an_output_folder_the_model_is_made_in_memory(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    made = pipeline.apply(RTN, tmp_path / "dense")
    assert torch.equal(logits(made), logits(pipeline.apply(RTN, pico.PICO["llama"]())))


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    for seed in (0, 1):
        pico.PICO["llama"](seed=seed).save_pretrained(tmp_path / str(seed))
    pipeline.apply(RTN, tmp_path / "0", output=tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with pytest.raises(FingerprintError, match="model was"):
        pipeline.apply(RTN, tmp_path / "1", output=tmp_path / "out")
    with pytest.raises(FingerprintError, match="recipe"):
        pipeline.apply(RTN | {"seed": 5}, tmp_path / "0", output=tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before


def test_a_folder_that_is_no_model_is_one_clear_error(tmp_path):
    with pytest.raises(ModelError, match="it is no model folder"):
        pipeline.apply(RTN, tmp_path, output=tmp_path / "out")
    with pytest.raises(ModelError, match="hub id"):
        pipeline.apply(RTN, tmp_path / "absent", output=tmp_path / "out")


def stop_after(stage: int) -> pipeline.Options:
    return pipeline.Options(Stop("streaming", stage))


def test_a_damaged_stage_is_named_and_redone_once_deleted(tmp_path, caplog):
    model = pico.PICO["llama"](layers=3)
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(StopError):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out", options=stop_after(3))
    stages = tmp_path / "out" / "run" / "stages"
    assert sorted(path.name for path in stages.glob("*.json")) == ["0000.json", "0001.json", "0002.json"]
    damaged = stages / "0001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"altered.*delete .*0001.json"):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    (stages / "0001.json").unlink()
    caplog.set_level(NOTICE)
    resumed = pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    assert "going on after stage 2 of 5" in caplog.text
    # What comes after it was drawn from the state of its record.
    assert differing(resumed, pipeline.apply(RTN, model)) == []


def resumed(recipe, folder, stages, **options):
    """Stopped after each of `stages` stages, then finished."""
    for stage in stages:
        with pytest.raises(StopError):
            pipeline.apply(recipe, folder / "dense", output=folder / "out", options=stop_after(stage), **options)
    return pipeline.apply(recipe, folder / "dense", output=folder / "out", **options)


def test_experts_that_a_model_came_with_are_gone_on_with(tmp_path):
    model = pico.NATIVE_MOE["qwen2_moe"](layers=3)
    model.save_pretrained(tmp_path / "dense")
    data = source_for(model)
    streamed = resumed(EXPERTS, tmp_path, (2, 3), data=data)
    assert differing(streamed, pipeline.apply(EXPERTS, model, data=data)) == []


def test_a_model_that_changes_its_type_is_gone_on_with(tmp_path):
    recipe = {"name": "half", "bits": {"ffn": "int8", "re:.*": "float16"}, "pipeline": [{"quantize": {}}]}
    model = pico.PICO["gemma2"](layers=3)
    model.save_pretrained(tmp_path / "dense")
    assert differing(resumed(recipe, tmp_path, (1, 3)), pipeline.apply(recipe, model)) == []


def test_layers_that_tokens_alone_pass_over(tmp_path):
    model = VISION["Llama 3.2 Vision"]()
    model.save_pretrained(tmp_path / "dense")
    streamed = pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    assert differing(streamed, pipeline.apply(RTN, model)) == []


@pytest.mark.parametrize("family", ["GPT-OSS", "Llama 4"])
def test_experts_that_lie_transposed_in_the_file(family, tmp_path):
    model = EXPERTS_OF[family]()
    model.save_pretrained(tmp_path / "dense")
    recipe = {"name": "experts", "bits": {"routed": "int8"}, "pipeline": [{"quantize": {}}]}
    streamed = pipeline.apply(recipe, tmp_path / "dense", output=tmp_path / "out")
    assert differing(streamed, pipeline.apply(recipe, model)) == []


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")


def test_a_config_that_says_no_type_is_planned_as_the_files_are(tmp_path):
    model = pico.PICO["llama"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    config = json.loads(path.read_text())
    config.pop("dtype")
    path.write_text(json.dumps(config))
    assert plan(RTN, tmp_path / "dense").result == plan(RTN, model).result
    streamed = pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    assert differing(streamed, pipeline.apply(RTN, model)) == []


def test_another_config_is_another_run(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    with pytest.raises(StopError):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out", options=stop_after(2))
    path = tmp_path / "dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
    with pytest.raises(FingerprintError, match="config was"):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")


def test_a_folder_of_other_weights_or_of_a_run_at_work_is_left_alone(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-part.safetensors").write_text("mine")
    with pytest.raises(FingerprintError, match="did not make"):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model-part.safetensors"]
    with pytest.raises(StopError):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "two", options=stop_after(2))
    with Run(tmp_path / "two").alone(), pytest.raises(FingerprintError, match="another run is at work"):
        pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "two")
    pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "two")


def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path, caplog):
    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{broken")
    pipeline.apply(RTN, tmp_path / "dense", output=tmp_path / "out")
    assert "no tokenizer or processor" in caplog.text


@pytest.mark.parametrize("latent", [False, True])
def test_a_model_of_ours_is_quantized_further(latent, tmp_path):
    keep = {"pipeline": [UPCYCLE, {"quantize": {"keep_latents": latent}}]}
    first = pipeline.apply({"name": "first", "bits": TERNARY} | keep, pico.PICO["qwen2"](layers=3))
    first.save_pretrained(tmp_path / "dense", latent=latent)
    further = {"name": "further", "bits": INT4_SHARED | {"attention": GPTQ}, "pipeline": [{"quantize": CALIBRATION}]}
    data = source_for(first)
    streamed = resumed(further, tmp_path, (2,), data=data)
    assert differing(streamed, pipeline.apply(further, first, data=data)) == []
