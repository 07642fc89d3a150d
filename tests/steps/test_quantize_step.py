from __future__ import annotations

import dataclasses

import pytest
import torch

from mote_quant.errors import CalibrationError, DataError, FormatError
from mote_quant.formats import format_for
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import FloatBits, IntegerBits
from mote_quant.steps.quantize.casts import cast_parameters
from mote_quant.steps.quantize.methods import HessianSum, Seen, gptq, rtn
from mote_quant.steps.quantize.walk import Walk
from tests import pico
from tests.mixtures import CALIBRATION, TERNARY, logits, quantize_it, upcycled
from tests.sources import source_for

GPTQ = {"format": "int4", "group_size": 16, "method": "gptq"}


def quantized(family: str, bits: dict, **settings):
    model = pico.PICO[family]()
    context = upcycled(model, bits)
    quantize_it(model, context, **settings)
    return model, context


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_rtn_replaces_each_module_by_what_rtn_says(family):
    model = pico.PICO[family]()
    context = upcycled(model, TERNARY | {"shared": "int4", "attention": {"format": "int8", "symmetric": False}})
    dense = {name: model.get_submodule(name) for name, spec in context.formats.items() if isinstance(spec, IntegerBits)}
    assert len(dense) >= 8
    quantize_it(model, context)
    for name, linear in dense.items():
        packed = model.get_submodule(name)
        weight = linear.weight.t() if family == "gpt2" else linear.weight
        expected = rtn(weight, context.formats[name])
        assert isinstance(packed, PackedLinear)
        assert torch.equal(packed.codes().short(), expected.codes.short())
        assert torch.equal(packed.packed.tensors["weight_scale"], expected.scale)
        if getattr(linear, "bias", None) is not None:
            assert torch.equal(packed.bias, linear.bias)
    assert set(context.notes["modules"]) == set(dense)


def recorded(model, name: str, batches) -> HessianSum:
    """The Hessian of one module's inputs in plain whole forwards."""
    linear = model.get_submodule(name)
    total = HessianSum(linear.weight.shape[1], name=name)
    handle = linear.register_forward_pre_hook(lambda module, args: total.add(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False)
    handle.remove()
    return total


@pytest.mark.parametrize("family", ["llama", "opt", "llava", "qwen2_5_vl"])
def test_gptq_sees_what_the_quantized_layers_before_put_out(family):
    """Layer by layer with a fresh whole forward each time, which is slow and surely right."""
    bits = TERNARY | {"shared": GPTQ}
    fast, context = quantized(family, bits, **CALIBRATION)
    slow = pico.PICO[family]()
    upcycled(slow, bits)
    source = source_for(slow)
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))[:8]
    chosen = [source.train[int(index)] for index in order]
    batches = [source.collate(chosen[:4]), source.collate(chosen[4:])]
    names = [name for name, spec in context.formats.items() if isinstance(spec, IntegerBits)]
    for layer in (f"layers.{index}." for index in range(2)):
        hessians = {name: recorded(slow, name, batches).value() for name in names if layer in name}
        for name, hessian in hessians.items():
            linear, spec = slow.get_submodule(name), context.formats[name]
            codes = gptq(linear.weight, spec, Seen(1, hessian), name=name)
            found = fast.get_submodule(name)
            assert (found.codes().short() == codes.codes.short()).float().mean() > 0.99, name
            packed = PackedLinear.pack(spec, codes, linear.bias, linear.weight.dtype)
            parent, _, child = name.rpartition(".")
            setattr(slow.get_submodule(parent), child, packed)
    assert {note["tokens"] for note in context.notes["modules"].values()} == {
        sum(b["input_ids"].numel() for b in batches)
    }
    assert context.notes["calibration"]["data"] == "pico"
    assert context.notes["calibration"]["samples"] == 8


def test_gptq_of_the_whole_model_reaches_what_stands_before_and_after_the_layers():
    model, context = quantized(
        "llava", TERNARY | {"vision": GPTQ | {"group_size": 8}, "projector": GPTQ, "head": GPTQ}, **CALIBRATION
    )
    modules = context.notes["modules"]
    assert any("vision_tower" in name for name in modules)
    assert any("projector" in name for name in modules)
    assert any("lm_head" in name for name in modules)
    starved = {name for name, note in modules.items() if note.get("tokens") == 0}
    assert not any("lm_head" in name or "projector" in name for name in starved)
    assert torch.isfinite(logits(model)).all()


def test_the_walk_sorts_by_place():
    model = pico.PICO["llava"]()
    names = ["lm_head", "model.language_model.layers.1.mlp.up_proj", "model.multi_modal_projector.linear_1"]
    names.append("model.language_model.layers.0.mlp.up_proj")
    assert Walk(model, []).stages(names) == [[names[2]], [names[3]], [names[1]], ["lm_head"]]


def starved_model():
    """Full-precision experts to be quantized by gptq, of which one never gets a token."""
    model = pico.PICO["llama"]()
    context = upcycled(model, {"routed": GPTQ})
    for block in blocks(model).values():
        with torch.no_grad():
            block.gate.weight.copy_(
                block.gate.weight[0].clone()
            )  # all logits equal: the tie goes to one expert, always
    return model, context


def test_experts_without_tokens_fall_back_or_stop():
    model, context = starved_model()
    quantize_it(model, context, **CALIBRATION)
    modules = context.notes["modules"]
    starved = {name for name, note in modules.items() if note["tokens"] == 0}
    assert starved
    assert len(starved) < len(modules)
    assert {modules[name]["method"] for name in starved} == {"rtn"}
    assert {modules[name]["fallback"] for name in starved} == {"no calibration token: rtn instead of gptq"}
    model, context = starved_model()
    with pytest.raises(CalibrationError, match=r"experts\.\d.*saw no calibration token.*fallback_rtn"):
        quantize_it(model, context, unhit="error", **CALIBRATION)


def test_no_samples_to_calibrate_with():
    model = pico.PICO["llama"]()
    context = upcycled(model, {"shared": GPTQ})
    empty = dataclasses.replace(source_for(model), train=[])
    context.open_data = lambda name, length: empty
    with pytest.raises(DataError, match="no samples to calibrate"):
        quantize_it(model, context, **CALIBRATION)


def test_gptq_without_calibration_settings():
    model = pico.PICO["llama"]()
    context = upcycled(model, {"shared": "int4"})
    context.formats = {name: spec.model_copy(update={"method": "gptq"}) for name, spec in context.formats.items()}
    with pytest.raises(CalibrationError, match=r"quantize\.calibration"):
        quantize_it(model, context)


def test_ternary_layers_are_packed_at_the_end():
    latent, _ = quantized("llama", TERNARY, keep_latents=True)
    model, _ = quantized("llama", TERNARY)
    assert not any(isinstance(module, QatLinear) for module in model.modules())
    assert model.hf_quantizer.quantization_config.latent is False
    for name, module in latent.named_modules():
        if isinstance(module, QatLinear):
            assert torch.equal(model.get_submodule(name).codes(), module.codes().codes)
    torch.testing.assert_close(logits(model), logits(latent))


def test_latents_are_kept_where_the_recipe_says_so():
    model, _ = quantized("llama", TERNARY, keep_latents=True)
    assert model.hf_quantizer.quantization_config.latent is True
    assert model.hf_quantizer.save_latent is False


def test_a_cast_linear_layer_computes_in_the_models_type():
    model = pico.PICO["llama"]()
    before = logits(model)
    cast_parameters(model, {"lm_head.weight": FloatBits(format="bfloat16")})
    assert isinstance(model.lm_head, CastLinear)
    assert model.lm_head.weight.dtype == torch.bfloat16
    after = logits(model)
    assert after.dtype == torch.float32
    assert 0 < (after - before).norm() / before.norm() < 0.01


def test_casting_everything_needs_no_cast_on_use():
    model = pico.PICO["llama"]()
    cast_parameters(model, {name: FloatBits(format="bfloat16") for name, _ in model.named_parameters()})
    assert not any(isinstance(module, CastLinear) for module in model.modules())
    assert logits(model).dtype == torch.bfloat16


def test_what_cannot_be_cast_alone_says_so():
    model = pico.PICO["llama"]()
    with pytest.raises(FormatError, match=r"model\.norm .*cannot be float16 while the model computes in float32"):
        cast_parameters(model, {"model.norm.weight": FloatBits(format="float16")})


def test_paper_bits_are_those_of_the_formats():
    _, context = quantized("llama", TERNARY | {"shared": "int3"})
    kinds = {spec.format: format_for(spec).paper_bits for spec in context.formats.values()}
    assert kinds == {"ternary": 2.0, "int3": 3.0}
