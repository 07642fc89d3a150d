"""Collating question-and-answer samples with an image through any vision-language processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mote_quant.data.source import IGNORED, Sample

IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes")
"""What processors return per image; everything else is one value a token."""


def collate_answers(processor: Any, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Model inputs, padded on the right: image and question, then the answer and the end token.

    `labels` cover the answer and the end token alone. Question and answer are tokenized apart, so the model sees in
    training exactly the prompt it is later asked to continue.
    """
    tokenizer = processor.tokenizer
    encoded = processor(
        text=[f"{processor.image_token}{sample['question']}" for sample in samples],
        images=[np.repeat(sample["image"][..., None], 3, axis=-1) for sample in samples],
        add_special_tokens=False,
    )
    answers = tokenizer([sample["answer"] for sample in samples], add_special_tokens=False)["input_ids"]
    answers = [[*answer, tokenizer.eos_token_id] for answer in answers]
    images = {name: _stack(encoded[name]) for name in IMAGE_INPUTS if name in encoded}
    tokens = {name: rows for name, rows in encoded.items() if name not in IMAGE_INPUTS}
    return _join(tokens, answers, tokenizer.pad_token_id) | images


def _stack(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.stack(values))


def _join(tokens: dict[str, list[list[int]]], answers: list[list[int]], pad: int) -> dict[str, Tensor]:
    prompts = tokens["input_ids"]
    joined = {
        name: [row + [0] * len(answer) for row, answer in zip(rows, answers, strict=True)]
        for name, rows in tokens.items()
    }
    joined["input_ids"] = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    joined["attention_mask"] = [[1] * len(row) for row in joined["input_ids"]]
    joined["labels"] = [[IGNORED] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
    fill = {"input_ids": pad, "labels": IGNORED}
    return {name: pad_right(rows, fill.get(name, 0)) for name, rows in joined.items()}


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of token values as one int64 tensor [rows, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.int64)
