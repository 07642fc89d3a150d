"""What `plan` refuses before anything runs: types a forward would die of, formats that nobody trained for."""

from __future__ import annotations

import pytest
import torch

from mote_quant.errors import FormatError, TargetError
from mote_quant.pipeline import apply
from mote_quant.planning import plan
from tests import pico
from tests.mixtures import TERNARY, mixture, quantize_it, reloaded, tensors_in, upcycled
from tests.sources import source_for


def recipe(bits, *steps) -> dict:
    return {"name": "x", "bits": bits, "pipeline": [*steps, "quantize"]}


def dense(family: str, dtype: torch.dtype = torch.float32, **settings):
    model = pico.PICO[family](**settings)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


# --- float casts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "dtype", "asked", "words"),
    [
        *((family, "float32", "bfloat16", "float32 while the model computes in bfloat16") for family in pico.PICO),
        ("llama", "bfloat16", "float32", r"\(LlamaRMSNorm\) cannot be bfloat16 while the model computes in float32"),
    ],
)
def test_an_embedding_of_another_type_than_the_model_is_refused(family, dtype, asked, words):
    model = dense(family, getattr(torch, dtype))
    made = recipe(TERNARY | {"embedding": asked}, "upcycle")
    with pytest.raises(FormatError, match=rf"{words}.* only linear layers cast on use"):
        plan(made, model)
    with pytest.raises(FormatError, match=words):
        apply(made, model)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("bits", [{"re:bias$": "float16"}, {"re:(q_proj|up_proj).*bias$": "bfloat16"}])
def test_biases_of_another_type_are_cast_on_use(bits, tmp_path):
    model = dense("llama", attention_bias=True, mlp_bias=True)
    made = recipe(bits | TERNARY, "upcycle")
    foretold = plan(made, model).result.stored_bytes
    apply(made, model, output=tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded(**pico.inputs(model)).logits.isfinite().all()
    assert foretold == sum(tensor.nbytes for tensor in tensors_in(tmp_path).values())


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_biases_of_experts_may_be_of_any_type(family, tmp_path):
    model = dense(family)
    made = recipe({r"re:experts.*bias$": "float16"} | TERNARY, "upcycle")
    foretold = plan(made, model).result.stored_bytes
    apply(made, model, output=tmp_path)
    tensors = tensors_in(tmp_path)
    assert foretold == sum(tensor.nbytes for tensor in tensors.values())
    assert {t.dtype for name, t in tensors.items() if "experts" in name and "bias" in name} == {torch.float16}
    assert type(model).from_pretrained(tmp_path)(**pico.inputs(model)).logits.isfinite().all()


def test_what_stood_apart_before_may_go_on_standing_apart():
    model = dense("llava", torch.bfloat16)
    tower = [p for name, p in model.named_parameters() if "vision_tower" in name]
    for parameter in tower:
        parameter.data = parameter.data.float()
    apply(recipe({"routed": "bfloat16", "head": "float16"}, "upcycle"), model)
    assert {parameter.dtype for parameter in tower} == {torch.float32}
    model = dense("llava", torch.bfloat16)
    with pytest.raises(FormatError, match=r"vision_tower.* cannot be float32"):
        plan(recipe({"vision": "float32"}, "upcycle"), model)


def test_packed_layers_may_stand_in_a_model_of_any_type(tmp_path):
    """The plan must pack before it casts, as the step does: a GPT-2 linear could not stay in float32 here."""
    model = dense("gpt2")
    made = recipe({"attention": "int8", "shared": "int8", "router": "float32", "*": "bfloat16"}, "upcycle")
    apply(made, model, output=tmp_path)
    assert model(**pico.inputs(model)).logits.isfinite().all()


# --- experts that are there already -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    return reloaded(mixture(TERNARY), tmp_path_factory.mktemp("latent"))


def test_full_precision_experts_are_not_ternary_for_the_asking(tmp_path):
    model = reloaded(mixture(), tmp_path)
    with pytest.raises(FormatError, match=r"experts\.0\.\w+ cannot be ternary: it is full precision"):
        plan(recipe(TERNARY), model)
    assert plan(recipe({"routed": "int4"}), model).result.roles["routed"].bits < 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"packing": "base3"}, "with packing 2bit, but this recipe asks for packing base3"),
        ({"granularity": "channel"}, "with granularity tensor, but this recipe asks for granularity channel"),
    ],
)
def test_latents_are_packed_as_they_were_trained(latent, settings, words):
    with pytest.raises(FormatError, match=rf"experts\.0\.\w+ was trained as ternary {words}"):
        plan(recipe({"routed": {"format": "ternary"} | settings}), latent)


@pytest.mark.parametrize("format", ["bfloat16", "int4"])
def test_latents_take_nothing_but_ternary(latent, format):
    words = rf"is trained as ternary\) cannot be {format}; it takes ternary, as it was trained"
    with pytest.raises(FormatError, match=words):
        plan(recipe({"routed": format}), latent)


def test_latents_with_biases_too(tmp_path):
    model = reloaded(mixture(TERNARY, family="opt"), tmp_path)
    with pytest.raises(FormatError, match="is trained as ternary"):
        plan(recipe({"routed": "bfloat16"}), model)


@pytest.mark.parametrize("bits", [{}, TERNARY])
def test_all_else_can_be_cast_around_latents(bits, tmp_path):
    model = reloaded(mixture(TERNARY), tmp_path / "latent")
    codes = {n: m.codes().codes for n, m in model.named_modules() if hasattr(m, "strength")}
    made = recipe(bits | {"router": "float32", "*": "bfloat16"})
    foretold = plan(made, model).result
    assert foretold.roles["routed"].bits < 3
    apply(made, model, data=source_for(model), output=tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert all(torch.equal(loaded.get_submodule(name).codes(), code) for name, code in codes.items())
    assert loaded.lm_head.weight.dtype == torch.bfloat16


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_packed_mixture_that_was_shortened_as_a_whole(family, dtype, tmp_path):
    from mote_quant.inspection import inspect

    model = pico.PICO[family]()
    quantize_it(model, upcycled(model, TERNARY))
    loaded = reloaded(model, tmp_path / "a").to(dtype)
    loaded.save_pretrained(tmp_path / "b")
    assert inspect(tmp_path / "b")["stored_bytes"] == sum(t.nbytes for t in tensors_in(tmp_path / "b").values())
    again = type(model).from_pretrained(tmp_path / "b")
    types = {name: p.dtype for name, p in loaded.named_parameters()}
    assert types == {name: p.dtype for name, p in again.named_parameters()}


# --- rates of their own ----------------------------------------------------------------------------------------------


def train(**settings) -> dict:
    return {"train": {"what": ["routed", "router"], "data": "pico", "steps": 1} | settings}


def test_a_rate_of_what_does_not_train_is_refused():
    made = recipe(TERNARY, "upcycle", train(learning_rates={"shared": 1.0e-3}))
    with pytest.raises(TargetError, match=r"train\.learning_rates, of what is trained: target shared matches nothing"):
        plan(made, dense("llama"))


@pytest.mark.parametrize("rated", ["*.weight_scale", "routed"])
def test_rates_of_learned_scales_and_of_what_training_makes_latent_are_taken(rated):
    bits = {"routed": {"format": "ternary", "granularity": "channel", "scales": "learned"}}
    assert plan(recipe(bits, "upcycle", train(learning_rates={rated: 1.0e-3})), dense("llama")).trained


def test_rates_of_a_dense_training_before_up_cycling_are_taken():
    made = recipe(TERNARY, train(what=["ffn"], learning_rates={"ffn": 1.0e-3}), "upcycle", train())
    assert len(plan(made, dense("llama")).trained) == 2
