"""What enters the down projection of a feed-forward network, of what its up projection and its gate return."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class Join(nn.Module):
    """Stands where an activation does, and joins gate and up in another way than `activation(gate) * up`."""

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two [n, inner] -> [n, inner]."""
        raise NotImplementedError


class NormedJoin(Join):
    """What a block norms before its down projection (BitNet)."""

    def __init__(self, activation: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.norm = norm

    def forward(self, up: Tensor) -> Tensor:
        """The join of a block without a gate."""
        return cast(Tensor, self.norm(self.activation(up)))

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two [n, inner] -> [n, inner]."""
        return cast(Tensor, self.norm(self.activation(gate) * up))


class OwnJoin(Join):
    """Gate and up joined as a model's own experts do it: clamped, shifted, with an activation of theirs.

    `experts` are those experts; kept of them is everything but the weights. `interleaved`: they take the gate's
    and up's values in turn, not one after the other.
    """

    def __init__(self, experts: nn.Module, interleaved: bool) -> None:
        super().__init__()
        shell = experts.__class__.__new__(experts.__class__)
        shell.__dict__ |= experts.__dict__ | {"_parameters": {}}
        # In a tuple it is no child: transformers would initialise the weights it has no more.
        self._experts: tuple[Any] = (shell,)
        self.interleaved = interleaved

    def join(self, gate: Tensor, up: Tensor) -> Tensor:
        """Two [n, inner] -> [n, inner]."""
        both = torch.stack([gate, up], dim=-1).flatten(-2) if self.interleaved else torch.cat([gate, up], dim=-1)
        return cast(Tensor, self._experts[0]._apply_gate(both))


def merge(up: Tensor, gate: Tensor | None, activation: nn.Module) -> Tensor:
    """`activation` is an elementwise function, or a Join."""
    if gate is None:
        return cast(Tensor, activation(up))
    return activation.join(gate, up) if isinstance(activation, Join) else cast(Tensor, activation(gate) * up)
