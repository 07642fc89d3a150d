"""Fused experts taken apart: the same numbers, the same files for what stays fused, clear words for what cannot be."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from mote_quant.errors import ArtifactError, FormatError, UnsupportedModelError
from mote_quant.hf.apart import to_unfuse
from mote_quant.hf.attach import attach
from mote_quant.hf.conversions import merges
from mote_quant.hf.fused import fused_experts, read_fused
from mote_quant.hf.skeleton import shadow
from mote_quant.hf.structure import Structure, rebuild, structure_of
from mote_quant.hf.unfuse import unfuse, unfuse_named
from mote_quant.moe.native import NativeExperts
from mote_quant.planning import plan
from mote_quant.recipe import load
from tests import pico
from tests.mixtures import logits, one_block, tensors_in
from tests.pico_moe import PICO_MOE

FIRST, SECOND = "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"


def unfused(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NativeExperts)]


def recipe(**bits: Any) -> dict[str, Any]:
    return {"name": "native", "bits": bits, "pipeline": [{"quantize": {"calibration": {"data": "pico"}}}]}


@pytest.mark.parametrize("family", PICO_MOE)
def test_the_outputs_are_those_of_the_fused_experts(family: str) -> None:
    model = PICO_MOE[family]()
    model.config.get_text_config()._experts_implementation = "eager"
    eager = logits(model)
    paths = list(fused_experts(model))
    assert paths
    unfuse(model, paths)
    assert unfused(model) == paths
    assert not fused_experts(model)
    torch.testing.assert_close(logits(model), eager, rtol=1e-5, atol=1e-5)


def test_transposed_interleaved_and_biased_weights_are_read_as_they_lie() -> None:
    model = PICO_MOE["GPT-OSS"]()
    path = next(iter(fused_experts(model)))
    held = {name: p.detach().clone() for name, p in model.get_submodule(path).named_parameters()}
    unfuse(model, [path])
    for index, expert in enumerate(model.get_submodule(path).experts):
        assert torch.equal(expert.gate_proj.weight, held["gate_up_proj"][index, :, ::2].t())
        assert torch.equal(expert.up_proj.weight, held["gate_up_proj"][index, :, 1::2].t())
        assert torch.equal(expert.up_proj.bias, held["gate_up_proj_bias"][index, 1::2])
        assert torch.equal(expert.down_proj.weight, held["down_proj"][index].t())
        assert torch.equal(expert.down_proj.bias, held["down_proj_bias"][index])
        assert all(p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes for p in expert.parameters())


def test_experts_that_are_given_all_tokens_compute_only_those_sent_to_them() -> None:
    model = PICO_MOE["Llama 4"]()
    (path,) = fused_experts(model)
    unfuse(model, [path])
    experts = model.get_submodule(path)
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    x[0, 1:] = x[2] = 0.0
    seen = []
    for expert in experts.experts:
        expert.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    output = experts(x.flatten(0, 1)).view(4, 5, 32)
    assert seen == [1, 5, 5]
    assert not output[0, 1:].any()
    assert output[0, 0].any()
    chosen, weights = experts.choice(x.flatten(0, 1))
    assert chosen.tolist() == [[0, 1, -1, 3]] + [[-1, 1, -1, 3]] * 4
    assert torch.equal(weights, (chosen >= 0).float())


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_a_layer_in_bfloat16_rounds_where_the_fused_one_does(family: str) -> None:
    model = pico.NATIVE_MOE[family]().to(torch.bfloat16)
    fused = model.get_submodule(FIRST)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    chosen = torch.tensor([[0, 2], [1, 0]] * 10)
    gates = torch.rand(20, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = fused(x, chosen, gates)
        unfuse(model, [FIRST])
        actual = model.get_submodule(FIRST)(x, chosen, gates)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_the_gate_has_the_first_rows() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    gate_up, down = (model.get_submodule(FIRST).get_parameter(name).clone() for name in ("gate_up_proj", "down_proj"))
    model.get_submodule(FIRST).requires_grad_(False)
    unfuse(model, [FIRST])
    for index, expert in enumerate(model.get_submodule(FIRST).experts):
        assert torch.equal(expert.gate_proj.weight, gate_up[index, :48])
        assert torch.equal(expert.up_proj.weight, gate_up[index, 48:])
        assert torch.equal(expert.down_proj.weight, down[index])
        assert not any(parameter.requires_grad for parameter in expert.parameters())
    assert model.get_submodule(SECOND).down_proj.requires_grad


def test_the_fused_storage_is_let_go() -> None:
    model = pico.NATIVE_MOE["qwen3_moe"]()
    held = [weakref.ref(p) for p in model.get_submodule(FIRST).parameters()]
    unfuse(model, [FIRST])
    assert [ref() for ref in held] == [None, None]
    weights = [linear.weight for linear in model.get_submodule(FIRST).modules() if isinstance(linear, nn.Linear)]
    assert len(weights) == 12
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in weights)


def test_on_meta_everything_stays_there_and_nothing_is_drawn() -> None:
    with torch.device("meta"):
        model = pico.NATIVE_MOE["olmoe"]()
    before = torch.random.get_rng_state()
    unfuse(model, [FIRST, SECOND])
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_only_the_layers_that_names_lie_in() -> None:
    model = pico.NATIVE_MOE["qwen3_moe"]()
    unfuse_named(model, ["model.layers.0.self_attn.q_proj", f"{FIRST}.gate_up_proj", f"{SECOND}.3.up_proj"])
    assert unfused(model) == [SECOND]
    unfuse_named(model, [f"{FIRST}.0.down_proj.weight", f"{SECOND}.3.up_proj"])
    assert unfused(model) == [FIRST, SECOND]


def test_a_visit_is_what_the_expert_gives_alone() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    unfuse(model, [FIRST])
    experts = model.get_submodule(FIRST)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    one = torch.ones(5, 1)
    for index in range(4):
        alone = experts(x, torch.full((5, 1), index), one)
        assert torch.equal(experts.visit(index, x), alone)
    assert experts(x[:0], torch.zeros(0, 2, dtype=torch.long), torch.ones(0, 2)).shape == (0, 32)


def test_a_visit_to_a_mixture_of_ours_quantizes_the_input_as_the_layer_does() -> None:
    block = one_block({"routed": "ternary"}, shared="none", router_std=0.0, experts=2)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # all tokens go to expert 0, each with weight one half
        assert torch.allclose(block.visit(0, x) * 0.5, block(x), atol=1e-6)
        assert not torch.allclose(block.visit(1, x), block.visit(0, x), atol=1e-6)


# What a recipe asks of which layers. Names beyond the experts are those of both states of a layer.
ASKED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the role": ({"routed": "int4"}, [FIRST, SECOND]),
    "one layer": ({"model.layers.1.mlp.experts": "int4"}, [SECOND]),
    "one expert": ({r"re:layers\.0\..*experts\.2\.": "int8"}, [FIRST]),
    "one kind": ({"*.experts.*.down_proj": "nf4"}, [FIRST, SECOND]),
    "all": ({"*": "int8"}, [FIRST, SECOND]),
    "auto": ({"routed": {"format": "auto", "average_bits": 3.0}}, [FIRST, SECOND]),
    "an earlier rule keeps a layer": ({"model.layers.0.mlp.experts": "float32", "routed": "int4"}, [SECOND]),
    "another type than the model's": ({"routed": "bfloat16"}, [FIRST, SECOND]),
    "the type the model has": ({"routed": "float32"}, []),
    "the type the model gets": ({"*": "bfloat16"}, []),
    "other roles": ({"attention": "int4", "head": "bfloat16"}, []),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_a_recipe_asks_to_take_apart(case: str) -> None:
    bits, expected = ASKED[case]
    model = pico.NATIVE_MOE["qwen3_moe"]()
    skeleton = shadow(model)
    assert to_unfuse(load(recipe(**bits)).bits, skeleton) == expected
    plan(recipe(**bits), model)
    assert unfused(model) == []


def changed(family: str, **attributes: Any) -> nn.Module:
    """The first experts of a pico model with some of their attributes changed."""
    experts = next(iter(fused_experts(PICO_MOE[family]()).values()))
    for name, value in attributes.items():
        setattr(experts, name, value)
    return experts


class Positional(nn.Module):
    """Experts of another call: tokens sorted by expert, with the number of each."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(2, 6, 4))
        self.down_proj = nn.Parameter(torch.zeros(2, 4, 3))
        self.act = nn.SiLU()

    def forward(self, hidden_states: Tensor, lengths: Tensor) -> Tensor:
        return hidden_states


TRAITS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "transposed": (
        lambda: changed("Mixtral", is_transposed=True),
        ["[4, 96, 32] does not go with down_proj [4, 32, 48]"],
    ),
    "interleaved": (lambda: changed("Mixtral", is_concatenated=False), ["interleaved"]),
    "normed": (lambda: changed("Mixtral", has_post_expert_norm=True), ["each expert's output is normed"]),
    "spread": (lambda: changed("Mixtral", _is_expert_parallel=True), ["spread over devices"]),
    "two activations": (lambda: changed("Mixtral", act=nn.GELU()), ["no single activation"]),
    "another weight": (
        lambda: changed("Mixtral", extra=nn.Parameter(torch.zeros(3))),
        ["gate_up_proj, down_proj, extra, not"],
    ),
    "shapes": (
        lambda: changed("Mixtral", down_proj=nn.Parameter(torch.zeros(3, 32, 48))),
        ["[4, 96, 32] does not go with"],
    ),
    "another call": (Positional, ["called with hidden_states, lengths, not with tokens, chosen experts and weights"]),
    "a join that learns": (
        lambda: changed("DeepSeek-V4", act_fn=nn.PReLU()),
        ["joined in a way of the model's own that has tensors of its own"],
    ),
    "biases where zeros must stay zeros": (
        lambda: changed(
            "Llama 4", **{f"{name}_bias": nn.Parameter(torch.zeros(4, 32)) for name in ("gate_up_proj", "down_proj")}
        ),
        ["every expert is given all tokens, and there are biases"],
    ),
}


@pytest.mark.parametrize("case", TRAITS)
def test_what_cannot_be_taken_apart_is_told_by_its_traits(case: str) -> None:
    build, words = TRAITS[case]
    with pytest.raises(UnsupportedModelError) as raised:
        read_fused("model.experts", build())
    said = str(raised.value)
    assert [word for word in ["model.experts", *words] if word not in said] == []


class Clamped(nn.Module):
    """What looks like plain experts and computes something else."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = experts.gate_up_proj, experts.down_proj, experts.act_fn
        self.inner = [experts]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return self.inner[0](hidden_states, top_k_index, top_k_weights).clamp(max=0.1)


def test_a_forward_that_does_more_is_found_by_running_it() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    model.model.layers[0].mlp.experts = clamped = Clamped(model.model.layers[0].mlp.experts)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.mlp\.experts \(Clamped\).*% off"):
        unfuse(model, [FIRST])
    assert model.get_submodule(FIRST) is clamped


def test_a_rule_about_more_than_experts_leaves_those_that_cannot_be_taken_apart() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    skeleton = shadow(model)
    for layer in skeleton.model.layers:
        layer.mlp.experts.has_post_expert_norm = True
    assert to_unfuse(load(recipe(**{"*": "int8"})).bits, skeleton) == []
    for target in ("routed", "MixtralExperts", "*.experts"):
        with pytest.raises(UnsupportedModelError, match=r"normed.*Leave them out of `bits`"):
            to_unfuse(load(recipe(**{target: "int8"})).bits, skeleton)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ({"*.experts.gate_up_proj": "int4"}, r"cannot be int4; it takes float32.*as model\.layers\.0\.mlp\.experts\.0"),
        ({"MixtralExperts": "int4"}, r"the role routed as a whole"),
        ({"router": "int4"}, r"model\.layers\.0\.mlp\.gate\.weight \(router\) cannot be int4; it takes float32, bfl"),
        ({"routed": "ternary"}, r"cannot be ternary: it is full precision"),
        ({"routed": {"format": "int4", "group_size": 64}}, r"32 input features of .*experts\.0\.gate_proj"),
    ],
)
def test_a_format_that_a_native_model_cannot_take(bits: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        plan(recipe(**bits), pico.NATIVE_MOE["mixtral"]())


def test_a_native_router_follows_the_type_of_the_model() -> None:
    model = pico.NATIVE_MOE["qwen2_moe"]().to(torch.bfloat16)
    assert "model.layers.0.mlp.gate.weight" in plan(recipe(router="bfloat16"), model).formats
    with pytest.raises(FormatError, match="cannot be float32 while the model computes in bfloat16"):
        plan(recipe(router="float32"), model)


def test_the_structure_says_so_and_rebuilds_it() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    assert "unfused" not in structure_of(model, latent=True).to_dict()
    unfuse(model, [SECOND])
    stored = structure_of(model, latent=True).to_dict()
    assert stored["unfused"] == [SECOND]
    assert stored["dtypes"] == {}
    again = shadow(model)
    assert unfused(again) == [SECOND]
    assert {name: p.shape for name, p in again.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


@pytest.mark.parametrize("path", ["model.layers.7.mlp.experts", "model.layers.0.mlp", "model.norm"])
def test_a_structure_of_another_model_is_refused(path: str) -> None:
    with pytest.raises(ArtifactError, match="does not fit this model"):
        rebuild(pico.NATIVE_MOE["mixtral"](), Structure(unfused=(path,)))


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_files_of_models_that_are_not_ours_stay_what_they_were(family: str, tmp_path: Path) -> None:
    model = pico.NATIVE_MOE[family]()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_a_layer_left_fused_lies_in_the_file_as_ever(family: str, tmp_path: Path) -> None:
    model = pico.NATIVE_MOE[family]()
    model.save_pretrained(tmp_path / "native")
    unfuse(model, [FIRST])
    attach(model, finished=True)
    model.save_pretrained(tmp_path / "ours")
    native, ours = tensors_in(tmp_path / "native"), tensors_in(tmp_path / "ours")
    kept = {name for name in native if ".layers.0." not in name or ".experts." not in name}
    assert kept < ours.keys()
    assert all(torch.equal(ours[name], native[name]) for name in kept)
    loaded = type(model).from_pretrained(tmp_path / "ours")
    assert unfused(loaded) == [FIRST]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    again = tensors_in(tmp_path / "again")
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


@pytest.mark.parametrize(("family", "merged"), [("qwen2_moe", True), ("mixtral", False)])
def test_a_guard_stands_where_a_reader_without_us_would_miss_nothing(family: str, merged: bool) -> None:
    model = pico.NATIVE_MOE[family]()
    assert merges(model, FIRST, "gate_up_proj") == merged
    unfuse(model, [FIRST])
    guards = dict(model.get_submodule(FIRST).named_parameters(recurse=False))
    assert {name: guard.numel() for name, guard in guards.items()} == ({} if merged else {"gate_up_proj": 0})


def test_a_vision_language_model_renames_its_keys_besides(tmp_path: Path) -> None:
    text = pico.NATIVE_MOE["qwen2_moe"]().config
    settings = pico.llava().config.to_dict() | {"text_config": text.to_dict()}
    config = transformers.LlavaConfig(**settings)
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "native")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "native").eval()
    path = "model.language_model.layers.0.mlp.experts"
    unfuse(model, [path])
    attach(model, finished=True)
    model.save_pretrained(tmp_path / "ours")
    assert any(name.startswith("language_model.model.layers.0.") for name in tensors_in(tmp_path / "ours"))
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert unfused(loaded) == [path]
    assert torch.equal(logits(loaded), logits(model))
