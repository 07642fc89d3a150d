"""Packed experts of any formats as one op, for who traces: which of them are asked is known only when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.kernels import table
from mote_quant.kernels.experts import ACTIVATIONS
from mote_quant.kernels.ops import define, fake_experts, op_of, packed_weight, stored_names

_SCHEMA = (
    "(Tensor x, Tensor chosen, Tensor gates, Tensor[] stored, Tensor[] biases, str[] specs, bool gated, int inner, "
    "str activation) -> Tensor"
)


@dataclass(frozen=True)
class _Experts:
    """Experts one after another, each as (up, gate, down), or (up, down) where nothing is gated.

    `specs` are those of all their weights, `stored` the tensors of these in the order of their layouts; `biases` are as
    many as weights, or none. `activation` is one of ACTIVATIONS.
    """

    stored: Sequence[Tensor]
    biases: Sequence[Tensor]
    specs: Sequence[str]
    gated: bool
    inner: int
    activation: str

    def visit(self, x: Tensor, expert: int) -> Tensor:
        """What an expert makes of x [n, hidden]."""
        steps, hidden = 3 if self.gated else 2, x.shape[-1]
        first, activate = expert * steps, ACTIVATIONS[self.activation]
        up = self._multiply(x, first, self.inner)
        entering = activate(self._multiply(x, first + 1, self.inner)) * up if self.gated else activate(up)
        return self._multiply(entering, first + steps - 1, hidden)

    def _multiply(self, x: Tensor, index: int, rows: int) -> Tensor:
        spec = self.specs[index]
        start = sum(len(stored_names(before)) for before in self.specs[:index])
        weight = packed_weight(spec, self.stored[start : start + len(stored_names(spec))], (rows, x.shape[-1]))
        return table.matmul(op_of(spec), x, weight, self.biases[index].to(x.dtype) if self.biases else None)


def packed_experts(x: Tensor, chosen: Tensor, gates: Tensor, *experts: Any) -> Tensor:
    """`sum_k gate_k * E_k(x)` for x [T, hidden], integers chosen [T, k], gates [T, k].

    `experts`: stored tensors, biases, specs, whether gated, inner size and activation, as `_Experts` has them.
    """
    return cast(Tensor, torch.ops.mote_quant.packed_experts(x, chosen, gates, *experts))


def _run(x: Tensor, chosen: Tensor, gates: Tensor, *experts: Any) -> Tensor:
    every = _Experts(*experts)
    outputs = x.new_zeros(*chosen.shape, x.shape[-1])
    for expert in set(chosen.flatten().tolist()):
        tokens, slots = (chosen == expert).nonzero(as_tuple=True)
        outputs[tokens, slots] = every.visit(x[tokens], expert)
    return (outputs * gates.unsqueeze(-1)).sum(dim=1).to(x.dtype)


define("packed_experts", _SCHEMA, _run, fake_experts)
