"""Experts trained for a format: the codes of training, of the packed model and of the reloaded one are the same."""

from __future__ import annotations

import pytest
import torch

from mote_quant.errors import FormatError
from mote_quant.formats import format_for
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.pipeline import apply
from mote_quant.planning import plan
from mote_quant.qat.linear import QatLinear
from mote_quant.ternary.quantize import absmean_scale
from tests import pico
from tests.mixtures import CALIBRATION, TRAIN, logits, mixture, quantize_it, reloaded, tensors_in, train_it, upcycled
from tests.rounding import assert_same_to_rounding
from tests.sources import source_for

FORMATS = {
    "ternary": {"format": "ternary"},
    "ternary, learned by group": {
        "format": "ternary", "granularity": "group", "group_size": 9, "scales": "learned", "scale_dtype": "float16",
    },
    "binary": {"format": "binary", "activations": "none"},
    "binary, learned by channel": {"format": "binary", "granularity": "channel", "scales": "learned"},
    "int2": {"format": "int2", "group_size": 16, "method": "qat"},
    "int3, with zero points": {"format": "int3", "group_size": 7, "symmetric": False, "method": "qat"},
    "int4, searched": {"format": "int4", "clip": "search", "method": "qat"},
}  # fmt: skip
MIXED = {
    "*.experts.*.down_proj": {"format": "int4", "group_size": 16, "method": "gptq"},
    "routed": "ternary",
}


def latents(model) -> dict[str, QatLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QatLinear)}


def packed(model) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def specs(model) -> list:
    return [module.spec for module in packed(model).values()]


def recipe(bits, train=None, quantize=None, **upcycle) -> dict:
    steps = [{"upcycle": {"noise": 0.3} | upcycle}, {"train": TRAIN | (train or {})}, {"quantize": quantize or {}}]
    return {"name": "qat", "bits": bits, "pipeline": steps}


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("opt", torch.float32), ("opt", torch.bfloat16)]
)
@pytest.mark.parametrize("format", FORMATS)
def test_codes_are_the_same_in_training_packed_and_reloaded(family, dtype, format, tmp_path):
    model = pico.PICO[family]()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    context = upcycled(model, {"routed": FORMATS[format]})
    train_it(model, context)
    trained, codes = logits(model), {name: module.codes() for name, module in latents(model).items()}
    assert len(codes) == 2 * 4 * (3 if family == "llama" else 2)
    quantize_it(model, context)
    assert_same_to_rounding(logits(model), trained)
    loaded = reloaded(model, tmp_path)
    for found in (packed(model), packed(loaded)):
        assert found.keys() == codes.keys()
        for name, module in found.items():
            assert torch.equal(module.codes(), codes[name].codes), name
            assert torch.equal(module.packed.tensors["weight_scale"], codes[name].scale), name
    for tensor in [*loaded.parameters(), *loaded.buffers()]:
        tensor.data = tensor.data.clone()  # the BLAS rounds otherwise where a tensor is aligned otherwise
    assert_same_to_rounding(logits(loaded), trained)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_stores_what_was_planned(format, tmp_path):
    model = pico.PICO["llama"]()
    made = recipe({"routed": FORMATS[format], "shared": "int8"})
    foretold = plan(made, model).result
    apply(made, model, data=source_for(model), output=tmp_path)
    assert foretold.stored_bytes == sum(tensor.nbytes for tensor in tensors_in(tmp_path).values())
    experts = [spec for spec in specs(type(model).from_pretrained(tmp_path)) if spec.format != "int8"]
    assert {(spec.format, spec) for spec in experts} == {(FORMATS[format]["format"], experts[0])}
    weights = 2 * 3 * 32 * 48
    paper = 4 * weights * format_for(experts[0]).paper_bits + weights * 8
    assert foretold.paper_gib["experts"] == pytest.approx(paper / 8 / 2**30)


@pytest.mark.parametrize("format", FORMATS)
def test_the_loss_falls_and_latents_move(format):
    model = pico.PICO["llama"]()
    context = upcycled(model, {"routed": FORMATS[format]})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_it(model, context, steps=30, learning_rate=1e-2, what=["routed"])
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if ".experts." in name}
    curve = context.notes["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.05


def test_an_expert_may_mix_trained_and_post_training_formats(tmp_path):
    model = pico.PICO["llama"]()
    context = upcycled(model, MIXED)
    assert {name.rpartition(".")[2] for name in latents(model)} == {"gate_proj", "up_proj"}
    expert = blocks(model)["model.layers.0.mlp"].experts[0]
    assert type(expert.down_proj) is torch.nn.Linear
    train_it(model, context, steps=5)
    codes = {name: module.codes().codes for name, module in latents(model).items()}
    half_way = reloaded(model, tmp_path / "half", latent=True)
    assert latents(half_way).keys() == latents(model).keys()
    quantize_it(model, context, **CALIBRATION)
    loaded = reloaded(model, tmp_path / "whole")
    found = packed(loaded)
    assert all(torch.equal(found[name].codes(), code) for name, code in codes.items())
    rest = {name: module.spec for name, module in found.items() if name not in codes}
    assert {name.rpartition(".")[2] for name in rest} == {"down_proj"}
    assert {(spec.format, spec.method) for spec in rest.values()} == {("int4", "gptq")}
    assert torch.isfinite(logits(loaded)).all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_mixed_run_stores_what_was_planned(family, tmp_path):
    model = pico.PICO[family]()
    made = recipe(MIXED, quantize=CALIBRATION)
    foretold = plan(made, model).result
    apply(made, model, data=source_for(model), output=tmp_path)
    assert foretold.stored_bytes == sum(tensor.nbytes for tensor in tensors_in(tmp_path).values())
    loaded = type(model).from_pretrained(tmp_path)
    assert {module.spec.format for module in packed(loaded).values()} == {"ternary", "int4"}


def test_experts_of_other_formats_in_a_16_bit_model(tmp_path):
    """Latent projections are float32, float ones of the model's own type."""
    model = pico.PICO["llama"]()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    upcycled(model, {"*.experts.*.down_proj": "bfloat16", "routed": {"format": "ternary", "scales": "learned"}})
    loaded = reloaded(model, tmp_path, latent=True)
    expert = blocks(loaded)["model.layers.0.mlp"].experts[0]
    assert expert.up_proj.weight.dtype == expert.up_proj.weight_scale.dtype == torch.float32
    assert expert.down_proj.weight.dtype == torch.bfloat16
    assert torch.equal(expert.up_proj.weight_scale, blocks(model)["model.layers.0.mlp"].experts[0].up_proj.weight_scale)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ({"shared": {"format": "int3", "method": "qat"}}, r"cannot be int3 by qat; .* for routed experts only"),
        ({"attention": "binary"}, r"cannot be binary; .* binary is for routed experts only"),
        ({"*.experts.0.*": "binary", "routed": "ternary"}, r"trained alike, gate_proj for binary, .* is given ternary"),
        ({"*.experts.0.*": "int8", "routed": "ternary"}, r"experts\.0\.gate_proj is given int8"),
        ({"*.experts.*.up_proj": "int8", "routed": "ternary"}, "given one input"),
        ({"routed": {"format": "binary", "granularity": "group", "group_size": 99}}, "more than the 32 input features"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_so(bits, words):
    with pytest.raises(FormatError, match=words):
        plan(recipe(bits), pico.PICO["llama"]())


def test_low_rank_experts_are_not_trained_for_a_format():
    with pytest.raises(FormatError, match=r"lora_A cannot be ternary: experts of lora_rank"):
        plan(
            {"name": "x", "bits": {"routed": "ternary"}, "pipeline": [{"upcycle": {"lora_rank": 2}}]},
            pico.PICO["llama"](),
        )


@pytest.mark.parametrize("format", ["binary", "int3, with zero points"])
def test_experts_that_are_there_must_have_been_trained_so(format, tmp_path):
    bits = {"routed": FORMATS[format]}
    only_quantize = {"name": "x", "bits": bits, "pipeline": ["quantize"]}
    with pytest.raises(FormatError, match=r"it is full precision, and this recipe does not up-cycle it"):
        plan(only_quantize, reloaded(mixture(), tmp_path / "plain"))
    trained = reloaded(mixture(bits), tmp_path / "trained")
    with pytest.raises(FormatError, match=r"is trained as (binary|int3 by qat)\) cannot be int8; it takes"):
        plan(only_quantize | {"bits": {"routed": "int8"}}, trained)
    other = FORMATS[format] | {"scale_dtype": "float32" if "int" in format else "float16"}
    with pytest.raises(FormatError, match=r"was trained as .* with scale_dtype float\d\d, but this recipe asks"):
        plan(only_quantize | {"bits": {"routed": other}}, trained)
    codes = {name: module.codes().codes for name, module in latents(trained).items()}
    apply(only_quantize, trained)
    assert all(torch.equal(module.codes(), codes[name]) for name, module in packed(trained).items())


@pytest.mark.parametrize("scales", ["absmean", "learned"])
def test_without_fake_quantization_training_is_that_of_full_precision_experts(scales):
    """The control: as if experts were float, rounded when it is over."""
    settings = {"steps": 4, "learning_rate": 1e-2, "what": ["routed", "router"]}
    bits = {"routed": {"format": "ternary", "granularity": "channel", "scales": scales}}
    trained = {}
    for name, given, fake in (("float", {}, True), ("control", bits, False), ("qat", bits, True)):
        model = pico.PICO["llama"]()
        context = upcycled(model, given)
        train_it(model, context, fake_quantize=fake, **settings)
        trained[name] = model
    name = "model.layers.1.mlp.experts.2.up_proj"
    float_, control, qat = (trained[kind].get_submodule(name) for kind in ("float", "control", "qat"))
    assert torch.equal(control.weight, float_.weight)
    assert not torch.equal(qat.weight, float_.weight)
    assert control.strength == qat.strength == 1.0
    assert torch.equal(control.codes().scale, absmean_scale(control.weight, control.spec))
    assert not torch.equal(logits(trained["control"]), logits(trained["float"]))


def test_learned_scales_are_trained_with_their_weights():
    model = pico.PICO["llama"]()
    context = upcycled(model, {"routed": {"format": "binary", "scales": "learned"}})
    started = {name: module.weight_scale.detach().clone() for name, module in latents(model).items()}
    for name, scale in started.items():
        module = model.get_submodule(name)
        assert torch.equal(scale, absmean_scale(module.weight, module.spec))
    train_it(model, context, what=["routed"], steps=4, learning_rate=1e-2)
    assert all(not torch.equal(module.weight_scale, started[name]) for name, module in latents(model).items())
