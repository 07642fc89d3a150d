"""Is this module an activation function? Found by trying it, because their classes share no base."""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

# transformers has `linear` among its activations, which is none.
_NONE = "linear"
_CLOSE = 1e-5


def is_activation(module: nn.Module) -> bool:
    """Whether `module` maps every number for itself, other than to itself, with single numbers as its parameters."""
    if isinstance(module, (nn.Identity, _DropoutNd)) or not _holds_numbers_only(module):
        return False
    x = torch.linspace(-3.0, 3.0, 12, device="cpu").reshape(2, 6)
    try:
        probe = on_cpu(module)
        with torch.no_grad(), torch.device("cpu"):
            whole, part = probe(x), probe(x[:, :2])
    except Exception:  # whatever a module that is no activation makes of a lone tensor
        return False
    if not isinstance(whole, Tensor) or whole.shape != x.shape or not isinstance(part, Tensor):
        return False
    # Vectorised and scalar code may differ in the last digits.
    return torch.allclose(whole[:, :2], part, atol=1e-4) and not torch.equal(whole, x)


def on_cpu(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in float32 and on the CPU, to try out without a trace; what was on meta is 1."""
    copy = deepcopy(module).eval()
    if any(tensor.is_meta for tensor in [*copy.parameters(), *copy.buffers()]):
        copy = copy.to_empty(device="cpu")
        for tensor in [*copy.parameters(), *copy.buffers()]:
            tensor.data.fill_(1.0)
    return copy.to("cpu", torch.float32)


def activation_of(block: nn.Module, child: str | None, function: str | None) -> nn.Module:
    """The activation of a feed-forward block: the child of that name, or the function that transformers calls so."""
    return block.get_submodule(child) if child is not None else function_module(str(function))


def function_module(name: str) -> nn.Module:
    """The activation that transformers calls `name`, as a module."""
    from transformers.activations import ACT2FN

    return cast(nn.Module, ACT2FN[name])


def function_name(x: Tensor, y: Tensor) -> str | None:
    """What transformers calls the activation that makes `y` of `x`, number by number; None if it has none like it."""
    from transformers.activations import ACT2FN

    with torch.no_grad(), torch.device("cpu"):
        named = ((name, function_module(name)) for name in ACT2FN if name != _NONE)
        return next((name for name, module in named if torch.allclose(module(x), y, atol=_CLOSE)), None)


def _holds_numbers_only(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return not any(True for _ in module.children()) and all(tensor.numel() == 1 for tensor in tensors)
