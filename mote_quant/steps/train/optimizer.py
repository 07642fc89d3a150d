"""What moves the weights."""

from __future__ import annotations

from typing import Any

import torch

from mote_quant.recipe.schema import Train


def build_optimizer(groups: list[dict[str, Any]], config: Train) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay over `groups` of parameters that all train."""
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
