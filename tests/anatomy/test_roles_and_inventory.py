from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mote_quant.anatomy.inventory import aliases, inventory
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import ROLES, IntegerBits, TernaryBits
from tests.pico import PICO, llava, qwen2_moe

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **PICO,
    "qwen2_moe": qwen2_moe,
    "llava_clip": lambda: llava(vision="clip"),
}

EXPECTED = {
    "llama": {
        "model.embed_tokens.weight": "embedding",
        "model.layers.1.self_attn.q_proj.weight": "attention",
        "model.layers.0.mlp.gate_proj.weight": "ffn",
        "model.layers.0.post_attention_layernorm.weight": "norm",
        "model.norm.weight": "norm",
        "lm_head.weight": "head",
    },
    "qwen2": {"model.layers.0.self_attn.q_proj.bias": "attention"},
    "qwen3": {"model.layers.0.self_attn.q_norm.weight": "norm"},
    "gemma": {"model.layers.0.self_attn.o_proj.weight": "attention", "model.layers.0.mlp.down_proj.weight": "ffn"},
    "gemma2": {"model.layers.0.pre_feedforward_layernorm.weight": "norm"},
    "phi": {
        "lm_head.bias": "head",
        "model.final_layernorm.bias": "norm",
        "model.layers.1.mlp.fc1.bias": "ffn",
        "model.layers.1.self_attn.dense.bias": "attention",
    },
    "gpt2": {
        "transformer.wpe.weight": "embedding",
        "transformer.h.0.attn.c_proj.weight": "attention",
        "transformer.h.0.mlp.c_proj.weight": "ffn",
        "transformer.ln_f.bias": "norm",
    },
    "opt": {
        "model.decoder.embed_positions.weight": "embedding",
        "model.decoder.layers.1.fc1.bias": "ffn",
        "model.decoder.layers.1.fc2.weight": "ffn",
        "model.decoder.layers.1.self_attn.out_proj.bias": "attention",
        "model.decoder.layers.1.final_layer_norm.weight": "norm",
    },
    "llava": {
        "model.vision_tower.embeddings.position_embedding.weight": "vision",
        "model.vision_tower.post_layernorm.weight": "vision",
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight": "vision",
        "model.multi_modal_projector.linear_2.bias": "projector",
        "model.language_model.layers.0.mlp.up_proj.weight": "ffn",
        "lm_head.weight": "head",
    },
    "llava_clip": {"model.vision_tower.embeddings.class_embedding": "vision"},
    "qwen2_5_vl": {
        "model.visual.merger.mlp.0.weight": "vision",
        "model.visual.merger.ln_q.weight": "vision",
        "model.visual.blocks.0.mlp.up_proj.weight": "vision",
        "model.language_model.layers.0.mlp.up_proj.weight": "ffn",
        "model.language_model.embed_tokens.weight": "embedding",
    },
    "qwen2_moe": {
        "model.layers.0.mlp.experts.gate_up_proj": "routed",
        "model.layers.0.mlp.shared_expert.up_proj.weight": "shared",
        "model.layers.0.mlp.shared_expert_gate.weight": "router",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.self_attn.q_proj.weight": "attention",
    },
}


def roles_of(model: nn.Module) -> dict[str, str]:
    return {parameter.name: parameter.role for parameter in inventory(model)}


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_has_one_role_and_none_is_odd(family: str) -> None:
    model = MODELS[family]()
    held = inventory(model)
    assert sorted(p.name for p in held) == sorted(name for name, _ in model.named_parameters())
    assert {p.role for p in held} <= set(ROLES) - {"other"}


@pytest.mark.parametrize("family", EXPECTED)
def test_roles(family: str) -> None:
    found = roles_of(MODELS[family]())
    assert {name: found.get(name) for name in EXPECTED[family]} == EXPECTED[family]


@pytest.mark.parametrize("family", MODELS)
def test_a_meta_model_has_the_same_inventory(family: str) -> None:
    with torch.device("meta"):
        meta = MODELS[family]()
    assert inventory(meta) == inventory(MODELS[family]())


@pytest.mark.parametrize("family", ["llama", "opt", "llava"])
def test_a_model_without_head_has_the_same_roles(family: str) -> None:
    model = PICO[family]()
    prefix = f"{model.base_model_prefix}."
    whole = {name.removeprefix(prefix): role for name, role in roles_of(model).items() if role != "head"}
    assert roles_of(model.base_model) == whole


def test_tied_weights_are_listed_once_under_the_embedding() -> None:
    model = PICO["qwen2"]()
    embedding = next(p for p in inventory(model) if p.role == "embedding")
    assert (embedding.name, embedding.tied_to) == ("model.embed_tokens.weight", "lm_head.weight")
    assert "lm_head.weight" not in roles_of(model)
    assert [(a.name, a.role, a.tied_to) for a in aliases(model)] == [("lm_head.weight", "head", embedding.name)]
    assert aliases(PICO["llama"]()) == []


def test_candidates_name_module_and_class() -> None:
    candidate = next(p for p in inventory(PICO["gpt2"]()) if p.name == "transformer.h.0.mlp.c_fc.bias").candidate()
    assert (candidate.module, candidate.module_class, candidate.role) == ("transformer.h.0.mlp.c_fc", "Conv1D", "ffn")


class Mixture(nn.Module):
    """Stands for a block that declares what its children are."""

    parameter_roles: ClassVar[dict[str, str]] = {
        "gate": "router",
        "experts": "routed",
        "shared_expert": "shared",
        "routed_scale": "router",
    }

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 3, bias=False)
        self.shared_expert = dense
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.LayerNorm(48)) for _ in range(3))
        self.routed_scale = nn.Parameter(torch.zeros(()))
        self.stray = nn.Linear(2, 2)
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8))


def test_declared_roles_win() -> None:
    model = PICO["llama"]()
    layer = model.model.layers[1]
    layer.mlp = Mixture(layer.mlp)
    found = roles_of(model)
    mixture = "model.layers.1.mlp"
    assert found[f"{mixture}.gate.weight"] == found[f"{mixture}.routed_scale"] == "router"
    assert found[f"{mixture}.experts.2.0.bias"] == found[f"{mixture}.experts.2.2.weight"] == "routed"
    assert found[f"{mixture}.shared_expert.gate_proj.weight"] == "shared"
    assert found[f"{mixture}.stray.weight"] == "other"
    assert f"{mixture}.weight" not in found, "an empty guard weighs nothing and is nobody's"
    assert found["model.layers.0.mlp.gate_proj.weight"] == "ffn"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "attention"


def test_a_packed_layer_keeps_its_role_and_counts_its_weights_once() -> None:
    model = PICO["llama"]()
    model.model.layers[0].mlp.up_proj = PackedLinear.empty(
        IntegerBits(format="int3", group_size=16, symmetric=False), 32, 48, False, torch.float32
    )
    packed = {p.name.rpartition(".")[2]: p for p in inventory(model) if ".0.mlp.up_proj." in p.name}
    assert {name: (p.role, p.count, p.bits, p.matrix) for name, p in packed.items()} == {
        "weight": ("ffn", 48 * 32, 3.0, True),
        "weight_scale": ("ffn", 0, 16.0, False),
        "weight_zero": ("ffn", 0, 8.0, False),
    }
    assert packed["weight"].nbytes == 48 * 32 * 3 // 8


def test_a_latent_ternary_weight_is_stored_as_float_and_meant_as_ternary() -> None:
    model = PICO["llama"]()
    model.model.layers[0].mlp.up_proj = QatLinear(32, 48, TernaryBits(format="ternary"))
    latent = next(p for p in inventory(model) if p.name == "model.layers.0.mlp.up_proj.weight")
    assert (latent.bits, latent.count, latent.nbytes) == (2.0, 48 * 32, 48 * 32 * 4)


def test_an_odd_parameter_is_other() -> None:
    model = PICO["llama"]()
    model.model.extra = nn.Parameter(torch.zeros(3, 3))
    model.extra = nn.Linear(3, 3)
    found = roles_of(model)
    assert (found["model.extra"], found["extra.weight"]) == ("other", "other")


def test_a_model_with_no_decoder_layers_still_has_roles() -> None:
    assert roles_of(nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2, bias=False))) == {
        "0.weight": "embedding",
        "1.weight": "other",
    }
