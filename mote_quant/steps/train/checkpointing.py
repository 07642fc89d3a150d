"""Gradient checkpointing as transformers does it: a layer keeps its input, and computes the rest again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from mote_quant.errors import RequestError

_FLAGS = ("gradient_checkpointing", "_gradient_checkpointing_func")
_HOOKS = ("_require_grads_hook", "_require_grads_hooks")


def check_checkpointing(model: nn.Module) -> None:
    """RequestError for a model that cannot be trained with gradient checkpointing."""
    flagged = any(hasattr(module, _FLAGS[0]) for module in model.modules())
    if not (flagged and getattr(model, "supports_gradient_checkpointing", False)):
        raise RequestError(
            f"train.gradient_checkpointing: {type(model).__name__} does not support it; leave it out, and take a "
            "smaller batch_size with more gradient_accumulation instead"
        )


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of `model` are computed twice, with the same random numbers; afterwards all is as before."""
    check_checkpointing(model)
    before = [(module, _own(module, _FLAGS)) for module in model.modules()]
    hooks = _own(model, _HOOKS)
    given = cast(Any, model)
    # The second is what the first was called until transformers 5.18, and warns since.
    enable = getattr(given, "activation_checkpointing_enable", None) or given.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
        # Only reentrant checkpointing needs gradients where nothing below trains.
        given.disable_input_require_grads()
        _restore(model, _HOOKS, hooks)
        yield
    finally:
        for module, values in before:
            _restore(module, _FLAGS, values)


def _own(module: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: vars(module)[name] for name in names if name in vars(module)}


def _restore(module: nn.Module, names: tuple[str, ...], values: dict[str, Any]) -> None:
    for name in names:
        vars(module).pop(name, None)
    vars(module).update(values)
