"""Pico models for tests: a few families of every make, from the builders of `eval.families`.

`PICO[name]()` builds one (float32, two decoder layers, hidden 32, feed-forward 48); keywords change sizes, and
`PICO[name](**ODD)` gives sizes that no group size or byte packing (4, 5 or 8 to a unit) divides. Built under
`torch.device("meta")` they are meta models. `inputs(model)` gives a batch the model's forward takes, with labels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from eval.families.builders import LANGUAGE, ODD, VISION, VOCABULARY, Builder, inputs
from eval.families.builders.base import config as _config
from eval.families.builders.base import gated as _gated
from eval.families.builders.base import model as _model
from eval.families.builders.grids import qwen2_5_vl
from eval.families.builders.images import (
    FIRST_WORD,
    IMAGE_SIDE,
    IMAGE_TOKEN,
    PATCH_SIDE,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
)
from eval.families.builders.vision import llava

__all__ = [
    "FIRST_WORD",
    "IMAGE_SIDE",
    "IMAGE_TOKEN",
    "NATIVE_MOE",
    "ODD",
    "PATCH_SIDE",
    "PICO",
    "VIDEO_TOKEN",
    "VISION_END",
    "VISION_START",
    "VOCABULARY",
    "Builder",
    "inputs",
    "llava",
    "qwen2_5_vl",
    "qwen2_moe",
    "saved",
]


def qwen2_moe(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
    """A model that already has experts (fused 3-D parameters and a gated shared expert)."""
    experts = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": ffn}
    experts |= {"shared_expert_intermediate_size": ffn}
    return _model("Qwen2MoeForCausalLM", _config("Qwen2Moe", **(_gated(hidden, ffn, layers) | experts | more)), seed)


def _experts(name: str, **own: Any) -> Builder:
    """A builder of `{name}ForCausalLM` with fused experts; `own` are its names for their count and sizes."""

    def build(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
        sizes = {"num_experts_per_tok": 2} | {key: ffn if value == "ffn" else value for key, value in own.items()}
        return _model(f"{name}ForCausalLM", _config(name, **(_gated(hidden, ffn, layers) | sizes | more)), seed)

    return build


PICO: dict[str, Builder] = {
    "llama": LANGUAGE["Llama"],
    "qwen2": LANGUAGE["Qwen2"],
    "qwen3": LANGUAGE["Qwen3"],
    "mistral": LANGUAGE["Mistral"],
    # Heads of 24 make q_proj / o_proj a 32 -> 48 / 48 -> 32 pair: the shape of the feed-forward, in the attention.
    "gemma": partial(LANGUAGE["Gemma"], head_dim=24),
    "gemma2": LANGUAGE["Gemma 2"],
    "phi": LANGUAGE["Phi"],
    "gpt2": LANGUAGE["GPT-2"],
    "opt": LANGUAGE["OPT"],
    "llava": VISION["LLaVA"],
    "qwen2_5_vl": VISION["Qwen2.5-VL"],
}


# Models that come with experts, fused in 3-D parameters; two of four see a token (Qwen2-MoE: one of three).
NATIVE_MOE: dict[str, Builder] = {
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": _experts("Qwen3Moe", head_dim=16, num_experts=4, moe_intermediate_size="ffn"),
    "mixtral": _experts("Mixtral", num_local_experts=4),
    "olmoe": _experts("Olmoe", num_experts=4),
}


def saved(folder: Path, family: str = "llama", **settings: Any) -> str:
    """A pico model of that family in `folder`, by the name that a recipe has for it."""
    PICO[family](**settings).save_pretrained(folder)
    return str(folder)
