"""The embedded dense model: a small LLaVA whose vision tower has learned to read digits, as CLIP would have.

Projector and language model are fresh: the recipe's stages I and II train them.
"""

from __future__ import annotations

import logging
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.data.digits_vqa.processor import END, IMAGE, PAD, build_tokenizer
from mote_quant.data.digits_vqa.questions import draw_cells
from mote_quant.data.digits_vqa.scenes import CELL, COLUMNS, HEIGHT, ROWS, Digits, choose_images, load_digits, render

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

EMPTY = 10
"""The class of an empty cell."""
VISION_STEPS, VISION_BATCH, VISION_RATE = 800, 64, 4.0e-3
INITIALIZER = 0.125
"""Near 1 / sqrt(hidden size); the 0.02 of large models leaves a model this narrow without a signal."""
logger = logging.getLogger(__name__)


def build_config() -> LlavaConfig:
    """Sizes are multiples of 32, so that every linear takes integer groups of 32."""
    from transformers import LlavaConfig, Qwen2Config, SiglipVisionConfig

    tokenizer = build_tokenizer()
    special = {
        name: tokenizer.convert_tokens_to_ids(token) for name, token in (("pad", PAD), ("end", END), ("image", IMAGE))
    }
    text = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER,
        pad_token_id=special["pad"],
        eos_token_id=special["end"],
        bos_token_id=None,
    )
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=HEIGHT,
        patch_size=CELL,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special["image"],
        image_seq_length=ROWS * COLUMNS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def build_dense(seed: int = 0) -> LlavaForConditionalGeneration:
    """A LLaVA with a trained, frozen vision tower, the rest of it fresh; leaves the caller's random state alone."""
    from transformers import LlavaForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(build_config())
        train_vision(model.model.vision_tower, load_digits(), seed)
    model.model.vision_tower.requires_grad_(False)
    return model


def train_vision(tower: Any, digits: Digits, seed: int, steps: int = VISION_STEPS) -> float:
    """Teach the tower to name the digit and the place of every cell, on training images only; returns the last loss."""
    rng = Random(f"vision {seed}")
    pool = digits.pools(seed)["train"]
    head = nn.Linear(tower.config.hidden_size, EMPTY + 1 + ROWS * COLUMNS)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=VISION_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VISION_RATE, total_steps=steps)
    tower.train()
    for _ in range(steps):
        pixels, classes = _vision_batch(digits, pool, rng)
        features = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        loss = _digit_and_place_loss(head(features), classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    tower.eval()
    logger.info("vision tower: %d steps, last loss %.4f", steps, loss.item())
    return loss.item()


def _digit_and_place_loss(logits: Tensor, classes: Tensor) -> Tensor:
    digits, places = torch.split(logits, [EMPTY + 1, ROWS * COLUMNS], dim=-1)
    where = torch.arange(ROWS * COLUMNS).expand(len(classes), -1)
    return F.cross_entropy(digits.flatten(0, 1), classes.flatten()) + F.cross_entropy(
        places.flatten(0, 1), where.flatten()
    )


def _vision_batch(digits: Digits, pool: dict[int, list[int]], rng: Random) -> tuple[Tensor, Tensor]:
    scenes, classes = [], []
    for _ in range(VISION_BATCH):
        cells = draw_cells(rng)
        scenes.append(render(choose_images(cells, pool, rng), digits.images, rng))
        classes.append([EMPTY if digit is None else digit for digit in cells])
    grey = torch.from_numpy(np.stack(scenes)).float() / 127.5 - 1.0
    return grey[:, None].expand(-1, 3, -1, -1), torch.tensor(classes)
