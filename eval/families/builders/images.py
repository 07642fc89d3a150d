"""What models that see are built of, and the image they see: 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from eval.families.builders.base import FFN, HIDDEN, LAYERS, Builder, config, gated, model

IMAGE_TOKEN = 5  # ids below FIRST_WORD are special; prompts draw their words from FIRST_WORD on
VISION_START, VISION_END, VIDEO_TOKEN = 6, 7, 8
FIRST_WORD = 10
IMAGE_SIDE = 16
PATCH_SIDE = 8

TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": IMAGE_SIDE, "patch_size": PATCH_SIDE}

Settings = dict[str, Any]


def siglip(**more: Any) -> Any:
    """The tower of many models."""
    return config("SiglipVision", **TOWER, vision_use_head=False, **more)


def seeing(name: str, settings: Callable[[int, Settings], Settings]) -> Builder:
    """A builder of `{name}ForConditionalGeneration`; `settings` are its config's, of the hidden size and the text's."""

    def build(
        hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any
    ) -> PreTrainedModel:
        made = config(name, **settings(hidden, gated(hidden, ffn, layers) | more))
        return model(f"{name}ForConditionalGeneration", made, seed)

    return build
