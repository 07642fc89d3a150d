"""Saved bytes, reloaded: the same codes, scales and logits; latents that train on; what goes wrong says so."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from mote_quant.errors import ArtifactError, RequestError, SaveError
from mote_quant.hf.attach import attach, holds_latents
from mote_quant.hf.integrity import sha256
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from tests import pico
from tests.mixtures import (
    INT4_SHARED,
    TERNARY,
    bits_of,
    logits,
    mixture,
    quantize_it,
    reloaded,
    tensors_in,
    train_it,
    upcycled,
)
from tests.rounding import assert_same_to_rounding
from tests.sources import source_for


def codes_of(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Codes and scales of every ternary module, latent or packed."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QatLinear):
            found[name] = (module.codes().codes, module.codes().scale)
        elif isinstance(module, PackedLinear) and module.spec.format == "ternary":
            found[name] = (module.codes(), module.packed.tensors["weight_scale"])
    return found


def same(model, loaded) -> None:
    mine, theirs = codes_of(model), codes_of(loaded)
    assert mine
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name][0], theirs[name][0]), name
        assert torch.equal(mine[name][1], theirs[name][1]), name
        assert mine[name][1].dtype == theirs[name][1].dtype
    close = {"rtol": 1e-4, "atol": 1e-4} if loaded.dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(logits(loaded), logits(model), **close)
    if holds_latents(model) != holds_latents(loaded):
        return
    # Tensors read from a file lie at other alignments, for which the BLAS rounds otherwise; in fresh
    # memory not a bit differs.
    realigned(loaded)
    assert torch.equal(logits(model), logits(loaded))
    assert torch.equal(logits(model, batch=1, length=1), logits(loaded, batch=1, length=1))


def realigned(model) -> None:
    """Every tensor moved to memory that the allocator gave."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


CASES = {
    "one expert": ({}, {"experts": 1}),
    "sixteen, two at a time, odd": ({}, {"experts": 16, "top_k": 2, **pico.ODD}),
    "base3, odd": ({"packing": "base3"}, {"experts": 4, **pico.ODD}),
    "channel, float16 scales, odd": ({"granularity": "channel", "scale_dtype": "float16"}, {"top_k": 2, **pico.ODD}),
    "groups that do not divide": ({"granularity": "group", "group_size": 9, "packing": "base3"}, pico.ODD),
    "float activations": ({"activations": "none", "granularity": "group", "group_size": 16}, {"combine": "convex"}),
    "no shared": ({}, {"shared": "none", "top_k": 2}),
    "all to one": ({}, {"router_std": 0.0}),
    "zero_init": ({"scale_dtype": "float16"}, {"combine": "zero_init"}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_latent_packed_and_reloaded_are_one_model(case, dtype, tmp_path):
    spec, settings = CASES[case]
    settings = dict(settings)
    sizes = {key: settings.pop(key) for key in ("hidden", "ffn") if key in settings}
    model = pico.PICO["qwen2"](**sizes)
    for parameter in model.parameters():  # not model.to: that would shorten the rotary tables, which no reload does
        parameter.data = parameter.data.to(dtype)
    context = upcycled(model, {"routed": {"format": "ternary"} | spec}, **settings)
    if case == "zero_init":
        with torch.no_grad():
            for block in blocks(model).values():
                block.gate.scale.fill_(0.5)
    trained = logits(model)
    quantize_it(model, context)
    assert_same_to_rounding(logits(model), trained)
    if case == "all to one":
        assert all(block.routing.load.max() == 1.0 for block in blocks(model).values())
    loaded = reloaded(model, tmp_path)
    assert not any(isinstance(module, QatLinear) for module in loaded.modules())
    assert loaded.dtype == dtype
    assert all(p.dtype == torch.float32 for block in blocks(loaded).values() for p in block.gate.parameters())
    same(model, loaded)


@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
def test_loading_in_another_type_keeps_codes_scales_and_router(tmp_path, asked):
    model = mixture(TERNARY | INT4_SHARED)
    quantize_it(model, upcycled(pico.PICO["llama"](), TERNARY | INT4_SHARED))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=asked)
    mine, theirs = codes_of(model), codes_of(loaded)
    for name in mine:
        assert torch.equal(mine[name][0], theirs[name][0])
        assert torch.equal(mine[name][1], theirs[name][1])
    assert all(b.gate.weight.dtype == torch.float32 for b in blocks(loaded).values())
    assert logits(loaded).dtype == asked
    assert (logits(loaded).float() - logits(model)).norm() / logits(model).norm() < 0.15


def test_float_casts_survive(tmp_path):
    bits = TERNARY | {"head": "bfloat16", "attention": "float16"}
    model = pico.PICO["llama"]()
    context = upcycled(model, bits)
    quantize_it(model, context)
    loaded = reloaded(model, tmp_path)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert loaded.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
    same(model, loaded)


def test_a_second_save_of_the_reloaded_model_is_the_same_file(tmp_path):
    model = pico.PICO["opt"]()
    context = upcycled(model, TERNARY | INT4_SHARED)
    quantize_it(model, context)
    loaded = reloaded(model, tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert sha256(tmp_path / "a/model.safetensors") == sha256(tmp_path / "b/model.safetensors")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert first == second


def test_shards_are_read_and_stale_ones_removed(tmp_path):
    model = mixture(TERNARY)
    quantize_it(model, upcycled(pico.PICO["llama"](), TERNARY))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    same(model, AutoModelForCausalLM.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    same(model, AutoModelForCausalLM.from_pretrained(tmp_path))


def one_step(model, folder, **settings) -> None:
    """One step of HF's own Trainer."""
    source = source_for(model)
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant",
        report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False, **{"save_strategy": "no"} | settings
    )  # fmt: skip
    Trainer(model, arguments, data_collator=source.collate, train_dataset=list(source.train)).train()


def latent_model():
    """A finished model that still holds its latents."""
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context, balance_loss=0.25, z_loss=0.5)
    quantize_it(model, context, keep_latents=True)
    return model


def test_latent_save_reloads_trains_on_and_packs_again(tmp_path):
    model = latent_model()
    loaded = reloaded(model, tmp_path / "latent", latent=True)
    same(model, loaded)
    assert {(b.balance_loss, b.z_loss) for b in blocks(loaded).values()} == {(0.25, 0.5)}
    before = bits_of(loaded.state_dict())
    one_step(loaded, tmp_path / "trainer")
    moved = [name for name, t in loaded.state_dict().items() if not torch.equal(t, before[name])]
    assert any("experts.0.up_proj" in name for name in moved)
    assert any(".gate.weight" in name for name in moved)
    packed = reloaded(loaded, tmp_path / "packed", latent=False)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    same(loaded, packed)
    assert tensors_in(tmp_path / "packed")["model.layers.0.mlp.experts.0.up_proj.weight"].dtype == torch.uint8


def test_hf_trainer_saves_and_resumes_a_latent_model(tmp_path):
    model = latent_model()
    one_step(model, tmp_path, save_strategy="steps", save_steps=1)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    same(model, loaded)


def test_saving_packed_leaves_the_live_model_latent(tmp_path):
    model = latent_model()
    model.save_pretrained(tmp_path / "a")
    assert holds_latents(model)
    assert model.config.quantization_config.latent is True
    one_step(model, tmp_path / "t")
    model.save_pretrained(tmp_path / "b", latent=True)
    assert tensors_in(tmp_path / "b")["model.layers.0.mlp.experts.0.up_proj.weight"].dtype == torch.float32


def test_a_packed_reload_is_refused_by_trainer(tmp_path):
    loaded = reloaded(latent_model(), tmp_path / "packed")
    with pytest.raises(ValueError, match=r"(?s)quantiz.*(fine-tun|train)"):
        one_step(loaded, tmp_path / "trainer")


def test_a_packed_reload_has_no_latents_to_keep(tmp_path):
    loaded = reloaded(latent_model(), tmp_path / "packed")
    with pytest.raises(RequestError, match="no latent weights"):
        loaded.save_pretrained(tmp_path / "again", latent=True)
    assert not (tmp_path / "again").exists()


def test_an_upcycled_model_keeps_its_latents_by_itself(tmp_path):
    model = mixture(TERNARY)
    loaded = reloaded(model, tmp_path)
    assert holds_latents(loaded)
    stored = tensors_in(tmp_path)["model.layers.0.mlp.experts.0.up_proj.weight"]
    assert torch.equal(stored, blocks(model)["model.layers.0.mlp"].experts[0].up_proj.weight)
    same(model, loaded)


def test_a_full_precision_mixture_too(tmp_path):
    model = mixture(shared="none", top_k=2)
    assert torch.equal(logits(reloaded(model, tmp_path)), logits(model))
    one_step(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "t")


def test_a_deep_copy_saves_itself_and_not_the_original(tmp_path):
    model = latent_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks(other).values():
            block.experts[0].up_proj.weight.mul_(-1)
    other.save_pretrained(tmp_path)
    same(other, AutoModelForCausalLM.from_pretrained(tmp_path))


def test_balance_loss_of_a_reloaded_model_is_attached_in_any_trainer(tmp_path):
    model = mixture(TERNARY)
    attach(model, balance_loss=3.0)
    loaded = reloaded(model, tmp_path).train()
    gradients = []
    for weight in (3.0, 0.0):
        for block in blocks(loaded).values():
            block.balance_loss = weight
        loaded.zero_grad()
        loaded(**pico.inputs(loaded)).loss.backward()
        gradients.append(blocks(loaded)["model.layers.0.mlp"].gate.weight.grad.clone())
    assert not torch.allclose(*gradients)


def test_the_file_says_how_it_was_made(tmp_path):
    model = latent_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mote"
    assert config["use_cache"] is True
    assert list(config["quantization_config"]["files"]) == ["model.safetensors"]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    model = latent_model()
    model.save_pretrained(tmp_path)
    before = {path.name: sha256(path) for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(
        SaveError, match=r"could not be written: .*No space left on device.*was there before is untouched"
    ):
        model.save_pretrained(tmp_path, latent=True)
    assert {path.name: sha256(path) for path in tmp_path.iterdir()} == before


def test_a_file_size_limit_is_a_save_error(tmp_path):
    resource = pytest.importorskip("resource")
    model = latent_model()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(SaveError, match="could not be written"):
            model.save_pretrained(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").iterdir())
    model.save_pretrained(tmp_path / "out")
    same(model, AutoModelForCausalLM.from_pretrained(tmp_path / "out"))


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveError, match="is a file, a folder is needed"):
        latent_model().save_pretrained(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    latent_model().save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_truncated_altered_and_foreign_weights_are_refused_by_name(copied):
    weights = copied / "model.safetensors"
    whole = weights.read_bytes()
    for damaged, said in (
        (whole[:-1], "truncated"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "altered"),
        (whole + b"0", "bytes"),
    ):
        weights.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=rf"model\.safetensors.*{said}"):
            AutoModelForCausalLM.from_pretrained(copied)
    weights.write_bytes(whole)
    AutoModelForCausalLM.from_pretrained(copied)


def test_a_config_without_its_manifest_is_refused(copied):
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["files"] = {}
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(copied)
