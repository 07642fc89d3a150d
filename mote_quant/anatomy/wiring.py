"""What a block's forward does between its linear layers, told by running it with stand-ins in their place.

A stand-in puts out numbers we know and keeps what it is given. No weight is read: a meta model is told as a real one.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.activation import function_module, function_name, on_cpu
from mote_quant.anatomy.block import FeedForward
from mote_quant.errors import UnsupportedModelError

_ROWS = 2
_TOLERANCE = 1e-4
# Where activations have become straight lines. A power of two, so that a factor is read without rounding.
_FAR = 1024.0


def wired(block: nn.Module, parts: FeedForward) -> FeedForward | None:
    """`parts` as the forward of `block` has them: which layer or half is the gate, the function, the factors.

    None for a forward that cannot be run with stand-ins. UnsupportedModelError for one that can, and that is not the
    forward of a feed-forward block.
    """
    readings = [parts] if parts.gate is None else [parts, _exchanged(parts)]
    try:
        with torch.no_grad(), torch.device("cpu"):
            found = [_as_read(block, reading) for reading in readings]
    except Exception:  # a forward may ask for anything; what cannot be tried here is tried with its weights
        return None
    if not any(found):
        raise UnsupportedModelError(_otherwise(parts))
    return next(reading for reading in found if reading)


def _otherwise(parts: FeedForward) -> str:
    formula = "act(up(x))" if parts.gate is None else "act(gate(x)) * up(x)"
    formula = formula if parts.norm is None else f"{parts.norm}({formula})"
    return (
        f"{parts.path} is not a plain feed-forward block: its forward does not give {formula} to {parts.down}, or does "
        "not return what that makes of it"
    )


def _exchanged(parts: FeedForward) -> FeedForward:
    """Gate and up the other way round."""
    if parts.fused is not None:
        return replace(parts, fused="up_first" if parts.fused == "gate_first" else "gate_first")
    return replace(parts, gate=parts.up, up=cast(str, parts.gate))


def _as_read(block: nn.Module, parts: FeedForward) -> FeedForward | None:
    """`parts` with its function and factors; None if the forward does not read so."""
    gate, up = _drawn(parts, 0), _drawn(parts, 1)
    alone, _ = _run(block, parts, gate, torch.ones_like(up))
    name = parts.function if parts.activation else function_name(gate, alone)
    if not (name or parts.activation):
        return None
    activation = function_module(name) if name else on_cpu(block.get_submodule(cast(str, parts.activation)))
    norm = nn.Identity() if parts.norm is None else on_cpu(block.get_submodule(parts.norm))
    scale = 1.0 if parts.norm or _close(alone, activation(gate)) else _slope(block, parts, activation)
    entering, output_scale = _run(block, parts, gate, up)
    expected = norm(activation(scale * gate) * (1.0 if parts.gate is None else up))
    if output_scale is None or not _close(entering, expected):
        return None
    return replace(parts, function=name, gate_scale=scale, output_scale=output_scale)


def _slope(block: nn.Module, parts: FeedForward, activation: nn.Module) -> float:
    """What a gate is multiplied with before the activation, if it is."""
    far = torch.full_like(_drawn(parts, 0), _FAR)
    entering, _ = _run(block, parts, far, torch.ones_like(far))
    return float(entering.flatten()[0] / activation(far).flatten()[0])


def _run(block: nn.Module, parts: FeedForward, gate: Tensor, up: Tensor) -> tuple[Tensor, float | None]:
    """What enters down when the layers before put out `gate` and `up` (a plain block: `gate`), and `_factor`."""
    sent = torch.ones(1, _ROWS, parts.hidden_size)
    sent[:, :, ::2] = -1.0
    down = _StandIn(sent)
    stand_ins = _before_down(parts, gate, up) | {parts.down: down}
    shell = copy(block)
    shell.training = False
    shell._modules = {name: stand_ins.get(name) or on_cpu(child) for name, child in block.named_children()}
    rows = [torch.zeros_like(sent), torch.full_like(sent, 2.0)][: 1 + parts.residual]
    # The forward of the class, on a copy: hooks and replaced forwards of the live block see nothing of this.
    output = cast(Any, type(block)).forward(shell, *rows)
    return down.given, _factor(output - rows[1] if parts.residual else output, sent)


def _before_down(parts: FeedForward, gate: Tensor, up: Tensor) -> dict[str, _StandIn]:
    if parts.gate is None:
        return {parts.up: _StandIn(gate)}
    if parts.fused is None:
        return {parts.gate: _StandIn(gate), parts.up: _StandIn(up)}
    halves = (gate, up) if parts.fused == "gate_first" else (up, gate)
    return {parts.up: _StandIn(torch.cat(halves, dim=-1))}


def _factor(output: Tensor, sent: Tensor) -> float | None:
    """What makes `output` of `sent` (numbers 1 and -1); None if no factor does."""
    factor = float((output * sent).double().mean())
    return factor if factor and _close(output, factor * sent) else None


class _StandIn(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value, self.given = value, value
        # Forwards ask layers for the type and place of their weights.
        self.weight, self.bias = value, None

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return self.value


def _drawn(parts: FeedForward, seed: int) -> Tensor:
    """Numbers [1, rows, inner], the same for a seed."""
    return torch.randn(1, _ROWS, parts.intermediate_size, generator=torch.Generator().manual_seed(seed))


def _close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
