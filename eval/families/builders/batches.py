"""Batches for pico models: seeded words, with an image a sample for a model that sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eval.families.builders.base import VOCABULARY
from eval.families.builders.images import FIRST_WORD, IMAGE_SIDE, IMAGE_TOKEN, VISION_END, VISION_START
from mote_quant.data.source import Source

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """How a family is shown an image: the tokens that stand for it, its pixels, and what else goes with a prompt."""

    tokens: tuple[int, ...]
    pixels: Callable[[Any, int, torch.Generator], Batch]
    beside: Callable[[Tensor], Batch] = lambda ids: {}


def inputs(model: Any, batch: int = 2, length: int = 9, seed: int = 0) -> Batch:
    """What `model(**inputs(model))` needs, with a loss: ids, mask, labels, and an image a sample for a VLM."""
    generator = torch.Generator().manual_seed(seed)
    seen = SEEN.get(model.config.model_type)
    if seen is None:
        return _prompt((), batch, length, generator)
    prompt = _prompt(seen.tokens, batch, length, generator)
    return prompt | seen.pixels(model.config, batch, generator) | seen.beside(prompt["input_ids"])


def source_for(model: Any, samples: int = 24, length: int = 9) -> Source:
    """`samples` single-row batches that `model` takes, as train, validation and test alike."""
    rows = [inputs(model, batch=1, length=length, seed=seed) for seed in range(samples)]

    def collate(chosen: Sequence[dict[str, Any]]) -> Batch:
        return {key: torch.cat([row[key] for row in chosen]) for key in chosen[0]}

    return Source(
        name="pico", fingerprint="pico", train=rows, validation=rows[:4], test=rows[:4], collate=collate, kind="text"
    )


def _prompt(image: tuple[int, ...], batch: int, length: int, generator: torch.Generator) -> Batch:
    """A batch of `image` tokens followed by words; labels are -100 over the image."""
    words = torch.randint(FIRST_WORD, VOCABULARY, (batch, length), generator=generator)
    shown = torch.tensor(image, dtype=torch.long).expand(batch, -1)
    ids = torch.cat([shown, words], dim=1)
    labels = torch.cat([torch.full_like(shown, -100), words], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _square(*shape: int) -> Callable[[Any, int, torch.Generator], Batch]:
    """Pixels [batch, *shape, 3, side, side]."""

    def pixels(config: Any, batch: int, generator: torch.Generator) -> Batch:
        return {"pixel_values": torch.randn(batch, *shape, 3, IMAGE_SIDE, IMAGE_SIDE, generator=generator)}

    return pixels


def _tiled(config: Any, batch: int, generator: torch.Generator) -> Batch:
    """The image whole and as one tile."""
    return _square(2)(config, batch, generator) | _sizes(batch)


def _measured(config: Any, batch: int, generator: torch.Generator) -> Batch:
    """The image and its size."""
    return _square()(config, batch, generator) | _sizes(batch)


def _sizes(batch: int) -> Batch:
    return {"image_sizes": torch.tensor([[IMAGE_SIDE, IMAGE_SIDE]]).expand(batch, -1).clone()}


def _crossed(config: Any, batch: int, generator: torch.Generator) -> Batch:
    """One tile of one image, of the first of the aspect ratios."""
    ones = torch.ones(batch, 1, 1, dtype=torch.long)
    return _square(1, 1)(config, batch, generator) | {"aspect_ratio_ids": ones[..., 0], "aspect_ratio_mask": ones}


def _patched(config: Any, batch: int, generator: torch.Generator) -> Batch:
    """Patches [batch * patches, values] and the grid they form."""
    side = IMAGE_SIDE // config.vision_config.patch_size
    values = 3 * 2 * config.vision_config.patch_size**2
    return {
        "pixel_values": torch.randn(batch * side * side, values, generator=generator),
        "image_grid_thw": torch.tensor([[1, side, side]]).expand(batch, -1).clone(),
    }


_QWEN = Seen(
    (VISION_START, *[IMAGE_TOKEN] * 4, VISION_END),
    _patched,
    lambda ids: {"mm_token_type_ids": (ids == IMAGE_TOKEN).int()},
)
_IDEFICS = Seen((IMAGE_TOKEN,), _square(1))

SEEN: dict[str, Seen] = {
    "llava": Seen((IMAGE_TOKEN,) * 4, _square()),
    # Four patches whole, four as a tile with an end of line after every two.
    "llava_next": Seen((IMAGE_TOKEN,) * 10, _tiled),
    "llava_onevision": Seen((IMAGE_TOKEN,) * 10, _tiled),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "glm4v": _QWEN,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "internvl": Seen((IMAGE_TOKEN,), _square()),
    "paligemma": Seen((IMAGE_TOKEN,) * 4, _square(), lambda ids: {"token_type_ids": (ids != IMAGE_TOKEN).long()}),
    "aya_vision": Seen((IMAGE_TOKEN,), _square()),
    "mistral3": Seen((IMAGE_TOKEN,) * 4, _measured),
    "mllama": Seen(
        (IMAGE_TOKEN,), _crossed, lambda ids: {"cross_attention_mask": torch.ones(*ids.shape, 1, 1, dtype=torch.long)}
    ),
    "gemma3": Seen(
        (VISION_START, *[IMAGE_TOKEN] * 4, VISION_END),
        _square(),
        lambda ids: {"token_type_ids": (ids == IMAGE_TOKEN).long()},
    ),
}
