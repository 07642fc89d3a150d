"""Whether somebody watches operations instead of wanting numbers: then nothing may be computed behind torch's back."""

from __future__ import annotations

import torch


def traced() -> bool:
    """Whether a tracer, a dispatch mode, a functorch transform or forward-mode differentiation is at work."""
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )
