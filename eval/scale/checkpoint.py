"""A sharded bfloat16 checkpoint of a known shape with random weights, written a layer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.hf.parts import INDEX, part_to_save, save_index
from mote_quant.hf.saving import stored_bytes
from mote_quant.hf.skeleton import skeleton_of
from mote_quant.memory import facts
from mote_quant.steps.quantize.walk import stage_of

STD = 0.02
"""The usual `initializer_range`; vectors (norms) start from 1."""


def write_checkpoint(shape: str, folder: Path, seed: int = 0, layers: int | None = None) -> Any:
    """Write a checkpoint of the facts `shape` (with only so many `layers`) to `folder`; returns its config."""
    config = facts.load(shape)
    if layers is not None:
        _cut(config, layers)
    skeleton = skeleton_of(config)
    config.architectures, config.dtype = [type(skeleton).__name__], torch.bfloat16
    if (folder / INDEX).exists():
        return config
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    parts = list(_parts(skeleton))
    shards = {}
    for number, tensors in enumerate(parts, start=1):
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({key: _draw(tensor, generator) for key, tensor in tensors.items()}, folder / name, {"format": "pt"})
        shards[name] = list(tensors)
    config.save_pretrained(folder)
    # Some words, so that recipes can name text.
    build_processor().save_pretrained(folder)
    save_index(shards, stored_bytes(folder), folder)
    return config


def _parts(skeleton: nn.Module) -> Iterator[dict[str, Tensor]]:
    stage = stage_of(skeleton)

    def of(name: str) -> int:
        return stage(name.rpartition(".")[0])

    for _, names in groupby(sorted(skeleton.state_dict(), key=of), key=of):
        part = part_to_save(skeleton, list(names))
        if part:
            yield part


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.empty(like.shape, dtype=torch.bfloat16).normal_(0.0, STD, generator=generator)
    return drawn + 1.0 if like.dim() == 1 else drawn


def _cut(config: Any, layers: int) -> None:
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
