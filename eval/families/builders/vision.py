"""Vision-language models: a small tower, a projector, a pico language model."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import PreTrainedModel

from eval.families.builders.base import HEAD, Builder, config
from eval.families.builders.grids import GRIDS
from eval.families.builders.images import (
    IMAGE_SIDE,
    IMAGE_TOKEN,
    PATCH_SIDE,
    TOWER,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    Settings,
    seeing,
    siglip,
)

_GEMMA = {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 8}
_TILES = {"image_grid_pinpoints": [[IMAGE_SIDE, IMAGE_SIDE]]}


def _llava(vision: str, own: Settings, hidden: int, text: Settings) -> Settings:
    towers = {"siglip": siglip, "clip": partial(config, "CLIPVision", **TOWER)}
    return {
        "vision_config": towers[vision](),
        "text_config": config("Qwen2", **text),
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_select_strategy": "full" if vision == "siglip" else "default",
        "vision_feature_layer": -2,
    } | own


def llava(*sizes: int, vision: str = "siglip", **more: Any) -> PreTrainedModel:
    """LLaVA: a SigLIP (or, with `vision="clip"`, CLIP) tower, a projector, a Qwen2 language model."""
    return seeing("Llava", partial(_llava, vision, {"image_seq_length": 4}))(*sizes, **more)


def _idefics(hidden: int, text: Settings) -> Settings:
    """2 x 2 patches become one token of a Llama."""
    return {"vision_config": dict(TOWER), "text_config": config("Llama", **text), "image_token_id": IMAGE_TOKEN}


def _internvl(hidden: int, text: Settings) -> Settings:
    sides = {"image_size": [IMAGE_SIDE] * 2, "patch_size": [PATCH_SIDE] * 2}
    tokens = {"image_token_id": IMAGE_TOKEN, "image_seq_length": 1}
    return {"vision_config": TOWER | sides, "text_config": config("Qwen2", **text)} | tokens


def _paligemma(hidden: int, text: Settings) -> Settings:
    """The prompt is attended to in both directions."""
    gemma = config("Gemma", **(text | {"head_dim": HEAD}))
    sizes = {"projection_dim": hidden, "hidden_size": hidden}
    vision = siglip(projection_dim=hidden)
    return {"vision_config": vision, "text_config": gemma, "image_token_index": IMAGE_TOKEN} | sizes


def _gemma3(hidden: int, text: Settings) -> Settings:
    """All patches are pooled to four tokens."""
    tokens = {"boi_token_index": VISION_START, "eoi_token_index": VISION_END, "image_token_index": IMAGE_TOKEN}
    gemma = config("Gemma3Text", **(text | _GEMMA))
    return {"vision_config": siglip(), "text_config": gemma, "mm_tokens_per_image": 4} | tokens


def _aya(hidden: int, text: Settings) -> Settings:
    """Cohere 2's parallel blocks."""
    cohere = config("Cohere2", **(text | {"head_dim": HEAD, "sliding_window": 8}))
    return {"vision_config": siglip(), "text_config": cohere, "image_token_index": IMAGE_TOKEN, "downsample_factor": 2}


def _mistral(hidden: int, text: Settings) -> Settings:
    """Images of any size."""
    pixtral = config("PixtralVision", **TOWER, head_dim=12)
    mistral = config("Mistral", **(text | {"head_dim": HEAD}))
    return {"vision_config": pixtral, "text_config": mistral, "image_token_index": IMAGE_TOKEN, "spatial_merge_size": 1}


def _mllama(hidden: int, text: Settings) -> Settings:
    """Images are looked at in layers of cross-attention."""
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "attention_heads": 2}
    tower |= {"image_size": IMAGE_SIDE, "patch_size": PATCH_SIDE, "num_global_layers": 1, "vision_output_dim": 48}
    tiles = {"max_num_tiles": 1, "intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1]]}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    llama = config("MllamaText", **(text | rope | {"cross_attention_layers": [1]}))
    return {"vision_config": tower | tiles, "text_config": llama, "image_token_index": IMAGE_TOKEN}


VISION: dict[str, Builder] = {
    "LLaVA": llava,
    "LLaVA-NeXT": seeing("LlavaNext", partial(_llava, "clip", _TILES)),
    "LLaVA-OneVision": seeing("LlavaOnevision", partial(_llava, "siglip", _TILES | {"video_token_index": VIDEO_TOKEN})),
    **GRIDS,
    "Idefics3": seeing("Idefics3", _idefics),
    "SmolVLM": seeing("SmolVLM", _idefics),
    "InternVL": seeing("InternVL", _internvl),
    "PaliGemma": seeing("PaliGemma", _paligemma),
    "Gemma 3 with images": seeing("Gemma3", _gemma3),
    "Aya Vision": seeing("AyaVision", _aya),
    "Mistral 3": seeing("Mistral3", _mistral),
    "Llama 3.2 Vision": seeing("Mllama", _mllama),
}
