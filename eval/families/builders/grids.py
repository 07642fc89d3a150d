"""Models that are given an image as a grid of patches, with rotary positions of three axes."""

from __future__ import annotations

from typing import Any

from eval.families.builders.base import HEAD, Builder, heads
from eval.families.builders.images import (
    IMAGE_SIDE,
    IMAGE_TOKEN,
    PATCH_SIDE,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    Settings,
    seeing,
)

_TOWER = {"depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 2}
_TOWER |= {"patch_size": PATCH_SIDE // 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
_TOKENS = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
_QWEN = _TOKENS | {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
_GLM = _TOKENS | {"image_start_token_id": VISION_START, "image_end_token_id": VISION_END}
_GLM |= {"video_start_token_id": 3, "video_end_token_id": 4}


def _settings(text: Settings, head: int, vision: Settings, tokens: Settings, **rope: Any) -> Settings:
    """`head` is the size of an attention head; a third of its rotary pairs each is for time, height and width."""
    half = head // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections} | rope
    untied = {"tie_word_embeddings": False}
    return {"vision_config": vision, "text_config": {"rope_parameters": rope} | untied | text} | untied | tokens


def _qwen2(hidden: int, text: Settings) -> Settings:
    vision = {name: value for name, value in _TOWER.items() if name != "intermediate_size"}
    vision |= {"embed_dim": 24, "hidden_size": hidden, "mlp_ratio": 2}
    return _settings(text, hidden // heads(hidden), vision, _QWEN)


def _qwen2_5(hidden: int, text: Settings) -> Settings:
    vision = _TOWER | {"out_hidden_size": hidden, "window_size": IMAGE_SIDE, "fullatt_block_indexes": [1]}
    return _settings(text, hidden // heads(hidden), vision, _QWEN)


def _qwen3(hidden: int, text: Settings) -> Settings:
    """Features of several vision layers enter the first decoder layers."""
    vision = _TOWER | {"out_hidden_size": hidden, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _settings({"head_dim": HEAD} | text, HEAD, vision, _QWEN, mrope_interleaved=True)


def _glm(hidden: int, text: Settings) -> Settings:
    """Gate and up in one linear layer."""
    vision = _TOWER | {"out_hidden_size": hidden, "image_size": IMAGE_SIDE}
    return _settings(text, hidden // heads(hidden), vision, _GLM, partial_rotary_factor=1.0)


qwen2_5_vl = seeing("Qwen2_5_VL", _qwen2_5)

GRIDS: dict[str, Builder] = {
    "Qwen2-VL": seeing("Qwen2VL", _qwen2),
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": seeing("Qwen3VL", _qwen3),
    "GLM-4.1V": seeing("Glm4v", _glm),
}
