"""The routed feed-forward networks of a layer as one operation: what it is given, and how torch does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.formats.base import Format
from mote_quant.kernels import reference
from mote_quant.kernels.weight import PackedWeight

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
"""What the op knows by name."""


@dataclass(frozen=True)
class PackedExperts:
    """Experts packed alike, one after another, each as (up, gate, down), or (up, down) where nothing is gated.

    `weights` and `scales` are the stored tensors of `format`; `biases` are as many, or none. `activation` is one of
    ACTIVATIONS.
    """

    weights: Sequence[Tensor]
    scales: Sequence[Tensor]
    biases: Sequence[Tensor]
    format: Format
    gated: bool
    hidden: int
    inner: int
    activation: str

    @property
    def projections(self) -> int:
        """How many weights an expert has."""
        return 3 if self.gated else 2

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.weights) // self.projections

    def multiply(self, x: Tensor, expert: int, projection: int) -> Tensor:
        """x [n, in] times one weight of one expert, by the reference."""
        index = expert * self.projections + projection
        down = projection == self.projections - 1
        shape = (self.hidden, self.inner) if down else (self.inner, self.hidden)
        tensors = {"weight": self.weights[index], "weight_scale": self.scales[index]}
        bias = self.biases[index].to(x.dtype) if self.biases else None
        return reference.matmul(x, PackedWeight(tensors, shape, self.format), bias)


def route(x: Tensor, chosen: Tensor, gates: Tensor, experts: PackedExperts) -> Tensor:
    """`sum_k gate_k * E_k(x)` by plain torch: x [T, hidden], integers chosen [T, k], float32 gates [T, k]."""
    outputs = x.new_zeros(*chosen.shape, experts.hidden)
    for expert in range(experts.count):
        tokens, slots = (chosen == expert).nonzero(as_tuple=True)
        if len(tokens):
            outputs[tokens, slots] = _visit(x[tokens], expert, experts)
    return (outputs * gates.unsqueeze(-1).to(outputs.dtype)).sum(dim=1)


def _visit(x: Tensor, expert: int, experts: PackedExperts) -> Tensor:
    activate, up = ACTIVATIONS[experts.activation], experts.multiply(x, expert, 0)
    entering = activate(experts.multiply(x, expert, 1)) * up if experts.gated else activate(up)
    return experts.multiply(entering, expert, experts.projections - 1)
