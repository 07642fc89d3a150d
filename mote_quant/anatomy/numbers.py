"""Does a feed-forward block compute what its structure suggests? Told by running it on a few random rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.activation import activation_of
from mote_quant.anatomy.block import FeedForward
from mote_quant.errors import BadWeightsError

ROWS = 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
HALF_TOLERANCE = 2e-2


def mismatch(block: nn.Module, parts: FeedForward) -> str | None:
    """How the block differs from what `parts` says of it; None if not, or on meta."""
    weight = _weight(block, parts)
    if weight.is_meta:
        return None
    x = _rows(weight, parts)
    given = (x, x) if parts.residual else (x,)
    with _evaluating(block):
        expected = _run(block, parts, x)
        if not bool(expected.isfinite().all()):
            raise BadWeightsError(
                f"the feed-forward weights in {parts.up}, {parts.down} give values that are not finite"
            )
        try:
            actual = block(*given)
        except Exception as error:  # a forward of another signature fails in its own way
            return f"it cannot be called with {_given(parts)} ({type(error).__name__}: {error})"
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return "it does not return one tensor of hidden states"
    distance = _distance(actual, expected)
    if distance <= TOLERANCE.get(x.dtype, HALF_TOLERANCE):
        return None
    return f"its output is off by {distance:.1%} from {_formula(parts)}, so its forward does something else"


def _run(block: nn.Module, parts: FeedForward, x: Tensor) -> Tensor:
    up = block.get_submodule(parts.up)(x)
    down = block.get_submodule(parts.down)
    output = cast(Tensor, down(_entering(up, block, parts, x))) * parts.output_scale
    return output + x if parts.residual else output


def _entering(up: Tensor, block: nn.Module, parts: FeedForward, x: Tensor) -> Tensor:
    activation, gate = activation_of(block, parts.activation, parts.function), up
    if parts.fused:
        gate, up = up.chunk(2, dim=-1)[:: 1 if parts.fused == "gate_first" else -1]
    elif parts.gate is not None:
        gate = block.get_submodule(parts.gate)(x)
    activated = activation(gate * parts.gate_scale)
    entering = activated if parts.gate is None else activated * up
    return cast(Tensor, entering if parts.norm is None else block.get_submodule(parts.norm)(entering))


def _given(parts: FeedForward) -> str:
    return "hidden states and a residual" if parts.residual else "hidden states alone"


def _formula(parts: FeedForward) -> str:
    scaled = {"gate": parts.gate_scale, "output": parts.output_scale}
    factors = [f"{name} times {scale:g}" for name, scale in scaled.items() if scale != 1.0]
    inner = f"act({parts.up}(x))" if parts.gate is None else f"act({parts.gate}(x)) * {parts.up}(x)"
    if parts.fused:
        inner = f"act(gate) * up, the halves of {parts.up}(x)"
    if parts.norm is not None:
        inner = f"{parts.norm}({inner})"
    return ", ".join([f"{parts.down}({inner})", *factors]) + (" and the residual" if parts.residual else "")


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
