"""The experts of a model that came with them, one module an expert instead of fused parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from mote_quant.moe.experts import Expert, dispatch, visit
from mote_quant.moe.joining import OwnJoin
from mote_quant.moe.packed import activation_name, packed_experts

# Empty, yet divisible as transformers divides fused experts on saving: two experts, two rows each for gate and up.
GUARD_SHAPE = (2, 4, 0)


class NativeExperts(nn.Module):
    """Stands in the place of a model's fused experts and is called as they are; the router stays the model's own.

    Expert n is the child `n`, so that its layers are named as most files of such models name them. `guard` is a fused
    parameter of which a file of ours would say nothing: transformers, when mote_quant is not imported, fills a
    *missing* parameter with random numbers, but refuses one of another shape. Zero bytes on disk.
    """

    parameter_roles: ClassVar[dict[str, str]] = {"": "routed"}
    # Of its own it has the guard at most, which no arithmetic reads: that may be of any type beside anything.
    keeps_float32: ClassVar[bool] = True

    def __init__(self, experts: Sequence[Expert], activation: nn.Module, guard: str | None = None) -> None:
        super().__init__()
        for index, expert in enumerate(experts):
            self.add_module(str(index), expert)
        self.act_fn = activation
        self._activation_name = None if isinstance(activation, OwnJoin) else activation_name(activation)
        if guard is not None:
            empty = cast(Tensor, experts[0].up_proj.weight).new_empty(GUARD_SHAPE)
            self.register_parameter(guard, nn.Parameter(empty, requires_grad=False))
        self.num_experts = len(experts)

    @property
    def experts(self) -> list[Expert]:
        """The experts in order."""
        return [cast(Expert, self.get_submodule(str(index))) for index in range(self.num_experts)]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`hidden_states` [T, hidden], for each token k experts and their weights [T, k] -> [T, hidden]."""
        experts = self.experts
        packed = packed_experts(hidden_states, experts, top_k_index, top_k_weights, self._activation_name)
        if packed is not None:
            return packed
        output = dispatch(hidden_states, experts, top_k_index, self.act_fn)
        # The weights are often float32; rounding them first would lose what the model keeps.
        return (output * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    def choice(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> tuple[Tensor, Tensor]:
        """What the router chose, as `forward` is told it: for each token experts (-1 is none) and weights [T, k]."""
        return top_k_index, top_k_weights

    def visit(self, index: int, x: Tensor) -> Tensor:
        """What expert `index` makes of tokens `x` [n, hidden], whomever the router would send them to."""
        return visit(self.experts[index], x, self.act_fn)


class WeighedExperts(NativeExperts):
    """Experts that are each given all tokens [E * T, hidden], times their router weight; 0 where it sends none."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """Expert after expert, [E * T, hidden] -> [E * T, hidden]. What is 0 stays 0 and costs nothing."""
        sent = hidden_states.any(dim=-1)
        chosen = torch.arange(self.num_experts, device=sent.device).repeat_interleave(len(sent) // self.num_experts)
        output = torch.zeros_like(hidden_states)
        output[sent] = dispatch(hidden_states[sent], self.experts, chosen[sent, None], self.act_fn).squeeze(1)
        return output

    def choice(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Every expert or none for each token, with weight 1: the router's is in the tokens already."""
        sent = hidden_states.any(dim=-1).view(self.num_experts, -1).t()
        every = torch.arange(self.num_experts, device=sent.device).expand_as(sent)
        return torch.where(sent, every, -1), sent.to(hidden_states.dtype)

    def visit(self, index: int, x: Tensor) -> Tensor:
        """What expert `index` makes of those of tokens `x` [n, hidden] that are sent anywhere."""
        return super().visit(index, x[x.any(dim=-1)])
