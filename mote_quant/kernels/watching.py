"""Whether somebody watches operations or stands between a layer and its call: nothing may happen behind their back."""

from __future__ import annotations

import torch
from torch import nn


def fetched(layer: nn.Module) -> bool:
    """Whether another forward stands before the layer's own, as where accelerate fetches weights it has offloaded."""
    return "forward" in vars(layer)


def traced() -> bool:
    """Whether a tracer, a dispatch mode, a functorch transform or forward-mode differentiation is at work."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
