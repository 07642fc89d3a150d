"""The tokens a comparison calibrates and measures on, and a model's perplexity once some weights are replaced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

STORY_END = "<|endoftext|>"
LENGTH, SAMPLES, BATCH = 256, 128, 16


@dataclass(frozen=True)
class Tokens:
    """int64 [rows, LENGTH]: what to calibrate on, what to measure on."""

    calibration: Tensor
    test: Tensor

    def save(self, path: Path) -> None:
        """One file, so that every library sees the same tokens."""
        save_file({"calibration": self.calibration, "test": self.test}, path)

    @staticmethod
    def load(path: Path) -> Tokens:
        """What `save` wrote."""
        return Tokens(**load_file(path))


def read_tokens(model: Path, calibration: Path, test: Path, seed: int) -> Tokens:
    """Random blocks of the first text; all blocks of the last fifth of the second one's stories."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    blocks = _blocks(calibration.read_text().split(STORY_END)[:-1], tokenizer)
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    stories = test.read_text().split(STORY_END)
    return Tokens(blocks[chosen], _blocks(stories[-(len(stories) // 5) :], tokenizer))


def _blocks(stories: list[str], tokenizer: Any) -> Tensor:
    ids = tokenizer([f"<|start_story|>{story.strip()}" for story in stories], add_special_tokens=False)["input_ids"]
    joined = torch.tensor([token for story in ids for token in story])
    return joined[: len(joined) // LENGTH * LENGTH].view(-1, LENGTH)


def load_dense(model: Path) -> Any:
    """The checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@torch.no_grad()
def perplexity(model: Path, weights: Mapping[str, Tensor], tokens: Tensor) -> float:
    """Of the checkpoint with the weights [out, in] of the named modules replaced."""
    dense = load_dense(model)
    for name, weight in weights.items():
        dense.get_submodule(name).weight.copy_(weight)
    total = 0.0
    for rows in tokens.split(BATCH):
        logits = dense(rows, use_cache=False).logits[:, :-1].flatten(0, 1).double()
        total += float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / tokens[:, 1:].numel())
