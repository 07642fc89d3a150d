"""What moves the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mote_quant.recipe.schema import Train
from mote_quant.steps.train.libraries import BETAS, EPSILON, library_of, require_shards
from mote_quant.steps.train.one_by_one import OneByOne


def build_optimizer(groups: list[dict[str, Any]], config: Train, model: nn.Module, seed: int) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay over `groups` of parameters of `model` that all train; `seed` rounds.

    MissingExtraError where its library is not installed, RequestError where it cannot work on shards.
    """
    if config.optimizer == "adamw_torch" and config.latents == "float32":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=BETAS, eps=EPSILON, fused=True)
    if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
        require_shards(config.optimizer)
    return OneByOne(groups, library_of(config.optimizer), model, seed, config.learning_rate)
