"""A data source for pico models: seeded random batches of whatever the family takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mote_quant.data.source import Source
from tests import pico


def source_for(model: PreTrainedModel | nn.Module, samples: int = 24, length: int = 9) -> Source:
    """`samples` single-row batches that `model` takes, as train, validation and test alike."""
    rows = [pico.inputs(model, batch=1, length=length, seed=seed) for seed in range(samples)]

    def collate(chosen: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: torch.cat([row[key] for row in chosen]) for key in chosen[0]}

    return Source(
        name="pico", fingerprint="pico", train=rows, validation=rows[:4], test=rows[:4], collate=collate, kind="text"
    )
