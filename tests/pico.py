"""Pico models: every supported family, built from its config with seeded random weights, small enough for any test.

`PICO[name]()` builds one (float32, two decoder layers, hidden 32, feed-forward 48); keywords change sizes, and
`PICO[name](**ODD)` gives sizes that no group size or byte packing (4, 5 or 8 to a unit) divides. Built under
`torch.device("meta")` they are meta models. `inputs(model)` gives a batch the model's forward takes, with labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 96
IMAGE_TOKEN = 5  # ids below FIRST_WORD are special; inputs() draws the words of a prompt from FIRST_WORD on
VISION_START, VISION_END, VIDEO_TOKEN = 6, 7, 8
FIRST_WORD = 10
IMAGE_SIDE = 16
PATCH_SIDE = 8
ODD: dict[str, int] = {"hidden": 38, "ffn": 47}

Builder = Callable[..., PreTrainedModel]


def _config(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**settings)


def _model(name: str, config: Any, seed: int) -> PreTrainedModel:
    """Build the class `name` under `seed` without touching the caller's random state, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = getattr(transformers, name)(config)
        with torch.no_grad():  # biases start at 0 and norms at 1, which would hide a mistake in either
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.train(False)
    return model


def _heads(hidden: int) -> int:
    return 2 if hidden % 4 == 0 else 1  # rotary positions need an even head size


def _common(hidden: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(hidden),
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # a trained model's contrast between logits, not a fresh one's near-uniform output
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _gated(hidden: int, ffn: int, layers: int) -> dict[str, Any]:
    return _common(hidden, layers) | {"intermediate_size": ffn, "num_key_value_heads": 1}


def _decoder(name: str, **extra: Any) -> Builder:
    """A builder of `{name}ForCausalLM`; `extra` are config values beyond the common ones."""

    def build(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
        config = _config(name, **(_gated(hidden, ffn, layers) | extra | more))
        return _model(f"{name}ForCausalLM", config, seed)

    return build


def gpt2(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
    """GPT-2: Conv1D linears (weight is [in, out]), biases, learned positions, tied head."""
    sizes = {"n_embd": hidden, "n_inner": ffn, "n_layer": layers, "n_head": _heads(hidden), "n_positions": 64}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return _model("GPT2LMHeadModel", _config("GPT2", **(sizes | dropout | tokens | more)), seed)


def opt(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
    """OPT: fc1 / fc2 with bias lie in the decoder layer itself, there is no feed-forward module."""
    own: dict[str, Any] = {"ffn_dim": ffn, "word_embed_proj_dim": hidden, "init_std": 0.2, "dropout": 0.0}
    return _model("OPTForCausalLM", _config("OPT", **(_common(hidden, layers) | own | more)), seed)


def llava(
    hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, vision: str = "siglip", **more: Any
) -> PreTrainedModel:
    """LLaVA: a SigLIP (or, with `vision="clip"`, CLIP) tower, a projector, a Qwen2 language model."""
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": IMAGE_SIDE, "patch_size": PATCH_SIDE}
    name = {"siglip": "SiglipVision", "clip": "CLIPVision"}[vision]
    config = _config(
        "Llava",
        vision_config=_config(name, **tower, **({"vision_use_head": False} if vision == "siglip" else {})),
        text_config=_config("Qwen2", **(_gated(hidden, ffn, layers) | more)),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(IMAGE_SIDE // PATCH_SIDE) ** 2,
        vision_feature_select_strategy="full" if vision == "siglip" else "default",
        vision_feature_layer=-2,
    )
    return _model("LlavaForConditionalGeneration", config, seed)


def qwen2_5_vl(hidden: int = 32, ffn: int = 48, layers: int = 2, seed: int = 0, **more: Any) -> PreTrainedModel:
    """Qwen2.5-VL: its own vision tower with a patch merger, three-axis rotary positions."""
    half = hidden // _heads(hidden) // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2, "out_hidden_size": hidden}
    patches = {"patch_size": PATCH_SIDE // 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 16}
    config = _config(
        "Qwen2_5_VL",
        vision_config=vision | patches | {"fullatt_block_indexes": [1]},
        text_config=_gated(hidden, ffn, layers) | {"rope_parameters": rope, "tie_word_embeddings": False} | more,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    return _model("Qwen2_5_VLForConditionalGeneration", config, seed)


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


_PHI_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}

PICO: dict[str, Builder] = {
    "llama": _decoder("Llama"),
    "qwen2": _decoder("Qwen2", tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3", head_dim=16),
    "mistral": _decoder("Mistral"),
    # Heads of 24 make q_proj / o_proj a 32 -> 48 / 48 -> 32 pair: the shape of the feed-forward, in the attention.
    "gemma": _decoder("Gemma", head_dim=24),
    "gemma2": _decoder("Gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=8),
    "phi": _decoder("Phi", rope_parameters=_PHI_ROPE),
    "gpt2": gpt2,
    "opt": opt,
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
}


# Models that come with experts, fused in 3-D parameters; two of four see a token (Qwen2-MoE: one of three).
NATIVE_MOE: dict[str, Builder] = {
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": _experts("Qwen3Moe", head_dim=16, num_experts=4, moe_intermediate_size="ffn"),
    "mixtral": _experts("Mixtral", num_local_experts=4),
    "olmoe": _experts("Olmoe", num_experts=4),
}


def _prompt(image_tokens: list[int], batch: int, length: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch of `image_tokens` followed by words; labels are -100 over the image."""
    words = torch.randint(FIRST_WORD, VOCABULARY, (batch, length), generator=generator)
    image = torch.tensor(image_tokens, dtype=torch.long).expand(batch, -1)
    ids = torch.cat([image, words], dim=1)
    labels = torch.cat([torch.full_like(image, -100), words], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def inputs(model: PreTrainedModel, batch: int = 2, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """What `model(**inputs(model))` needs, with a loss: ids, mask, labels, and an image per sample for a VLM."""
    generator = torch.Generator().manual_seed(seed)
    family = model.config.model_type
    if family == "llava":
        prompt = _prompt([IMAGE_TOKEN] * model.config.image_seq_length, batch, length, generator)
        pixels = torch.randn(batch, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)
        return prompt | {"pixel_values": pixels}
    if family == "qwen2_5_vl":
        side = IMAGE_SIDE // model.config.vision_config.patch_size
        merged = side * side // model.config.vision_config.spatial_merge_size**2
        prompt = _prompt(
            [VISION_START, *[IMAGE_TOKEN] * merged, VISION_END],
            batch,
            length,
            generator,
        )
        values_per_patch = 3 * 2 * model.config.vision_config.patch_size**2
        return prompt | {
            "pixel_values": torch.randn(batch * side * side, values_per_patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, side, side]]).expand(batch, -1).clone(),
            "mm_token_type_ids": (prompt["input_ids"] == IMAGE_TOKEN).int(),
        }
    return _prompt([], batch, length, generator)
