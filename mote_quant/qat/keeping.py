"""Weights that are quantized once while nothing trains them: for micro-batches whose gradients are accumulated.

A latent weight is quantized in every forward unless somebody says that it stands still. A version counter alone cannot
say so: optimizers may write to `parameter.data` or to raw memory, and gradient steps on stale codes look like training.
What is kept are codes, a sixteenth of float32 weights in memory (a quarter without native kernels), and they go when
the weights move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mote_quant.qat.linear import QatLinear


@contextmanager
def keeping(model: nn.Module) -> Iterator[None]:
    """Inside, each latent weight of `model` is quantized at its first use and its codes are kept to the end.

    For all that lies between two steps of an optimizer: micro-batches, and forwards that gradient checkpointing runs
    again. A weight that is written to in the way autograd notices, or replaced, is quantized anew all the same.
    """
    layers = [module for module in model.modules() if isinstance(module, QatLinear)]
    try:
        for layer in layers:
            layer.keeps = True
        yield
    finally:
        for layer in layers:
            layer.release()
