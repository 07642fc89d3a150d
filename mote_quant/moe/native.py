"""The experts of a model that came with them, one module an expert instead of fused parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from mote_quant.moe.experts import Expert, dispatch, visit

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
        output = dispatch(hidden_states, self.experts, top_k_index, self.act_fn)
        # The weights are often float32; rounding them first would lose what the model keeps.
        return (output * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)

    def visit(self, index: int, x: Tensor) -> Tensor:
        """What expert `index` makes of tokens `x` [n, hidden], whomever the router would send them to."""
        return visit(self.experts[index], x, self.act_fn)
