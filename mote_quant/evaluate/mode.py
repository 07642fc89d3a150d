"""Models as they are measured: in eval mode, without gradients, and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def measured(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every module gets its own mode back, also where they differ."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
