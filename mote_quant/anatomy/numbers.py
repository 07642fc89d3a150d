"""Does a feed-forward block compute what its structure suggests? Told by running it on a few random rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.block import FeedForward
from mote_quant.errors import BadWeightsError

ROWS = 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
HALF_TOLERANCE = 2e-2


def mismatch(block: nn.Module, parts: FeedForward) -> str | None:
    """How the block differs from `down(act(gate(x)) * up(x))` or `down(act(up(x)))`; None if not, or if on meta."""
    weight = _weight(block, parts)
    if weight.is_meta:
        return None
    x = _rows(weight, parts)
    with _evaluating(block):
        expected = _run(block, parts, x, swapped=False)
        if not bool(expected.isfinite().all()):
            raise BadWeightsError(
                f"the feed-forward weights in {parts.up}, {parts.down} give values that are not finite"
            )
        try:
            actual = block(x)
        except Exception as error:  # a forward of another signature fails in its own way
            return f"it cannot be called with hidden states alone ({type(error).__name__}: {error})"
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return "it does not return one tensor of hidden states"
    distance = _distance(actual, expected)
    if distance <= TOLERANCE.get(x.dtype, HALF_TOLERANCE):
        return None
    return f"its output is off by {distance:.1%} from {_formula(parts)}, so its forward does something else"


def fits_better_swapped(block: nn.Module, parts: FeedForward) -> bool:
    """Whether a gated block's output says that gate and up are the other way round. False on meta."""
    weight = _weight(block, parts)
    if weight.is_meta:
        return False
    x = _rows(weight, parts)
    with _evaluating(block):
        try:
            actual = block(x)
        except Exception:  # `mismatch` is the one to report it
            return False
        straight, swapped = (_run(block, parts, x, order) for order in (False, True))
    if not isinstance(actual, Tensor) or actual.shape != straight.shape:
        return False
    return _distance(actual, swapped) < _distance(actual, straight)


def _run(block: nn.Module, parts: FeedForward, x: Tensor, swapped: bool) -> Tensor:
    up, down, activation = (block.get_submodule(name) for name in (parts.up, parts.down, parts.activation))
    if parts.gate is None:
        return cast(Tensor, down(activation(up(x))))
    gate = block.get_submodule(parts.gate)
    gate, up = (up, gate) if swapped else (gate, up)
    return cast(Tensor, down(activation(gate(x)) * up(x)))


def _formula(parts: FeedForward) -> str:
    inner = f"act({parts.up}(x))" if parts.gate is None else f"act({parts.gate}(x)) * {parts.up}(x)"
    return f"{parts.down}({inner})"


def _weight(block: nn.Module, parts: FeedForward) -> Tensor:
    return cast(Tensor, block.get_submodule(parts.down).weight)


def _rows(weight: Tensor, parts: FeedForward) -> Tensor:
    """Random rows [1, ROWS, hidden] where the weights are and of their type, the same at every call."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(1, ROWS, parts.hidden_size, generator=generator, device="cpu")
    return x.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)


def _distance(actual: Tensor, expected: Tensor) -> float:
    expected = expected.float()
    norm = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((actual.float() - expected).norm() / norm)


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in block.modules()}
    try:
        block.train(False)
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
