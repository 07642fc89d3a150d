"""Which experts a token goes to, and with what weight. All arithmetic in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.moe.layout import MoteLayout


@dataclass(frozen=True)
class Choice:
    """A routing decision for T tokens, k choices each, among E experts.

    `logits` and `probabilities` are [T, E]; `experts` (integers) and `gates` are [T, k]. `kept` [T, k] says which of
    the experts are really asked; None is all of them.
    """

    logits: Tensor
    probabilities: Tensor
    experts: Tensor
    gates: Tensor
    kept: Tensor | None = None

    def detached(self) -> Choice:
        """The same, out of the graph."""
        floats = {name: getattr(self, name).detach() for name in ("logits", "probabilities", "gates")}
        return replace(self, **floats)


def confidence(choice: Choice, shared: bool) -> Tensor:
    """How sure the router is of each token [T]: the best probability; without a shared expert second / best."""
    best = choice.probabilities.gather(-1, choice.experts[:, :1])
    return (best if shared else choice.probabilities.gather(-1, choice.experts[:, 1:2]) / best).squeeze(-1)


def thinned(choice: Choice, layout: MoteLayout) -> Choice:
    """The choice without the experts that `skip_below` spares: all of a token's, or all but one if none is shared.

    Gates that are normalised stay so: an expert left alone has the weight that all of them had together.
    """
    spared = confidence(choice, layout.shared) < layout.skip_below
    kept = ~spared.unsqueeze(-1).expand_as(choice.gates)
    if layout.shared:
        return replace(choice, kept=kept)
    first = torch.arange(choice.gates.shape[-1], device=kept.device) == 0
    gates = choice.gates
    if layout.normalize_gates:
        gates = torch.where(spared.unsqueeze(-1) & first, gates.sum(-1, keepdim=True), gates)
    return replace(choice, kept=kept | first, gates=gates)


class Router(nn.Module):
    """A linear router, `softmax` then top-k. Its parameters stay float32 whatever the model is cast to.

    `weight` is [E, hidden]; `scale` (only with combine: zero_init) is the learned factor of all gates, 0 at the start.
    """

    # Its arithmetic is float32 whatever the model computes in, so it may be stored in float32 beside anything.
    keeps_float32: ClassVar[bool] = True

    def __init__(self, layout: MoteLayout, device: torch.device | str | None = None) -> None:
        super().__init__()
        shape = (layout.experts, layout.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))
        if layout.combine == "zero_init":
            self.scale = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))
        self.top_k = layout.top_k
        self.normalize = layout.normalize_gates

    def forward(self, x: Tensor) -> Choice:
        """`x` is [T, hidden]."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(self.weight.dtype), self.weight)
            probabilities = logits.softmax(dim=-1)
            gates, experts = probabilities.topk(self.top_k, dim=-1)
            return Choice(logits, probabilities, experts, self._scaled(self._normalized(gates)))

    def _normalized(self, gates: Tensor) -> Tensor:
        if not self.normalize:
            return gates
        # A single gate divided by itself is the constant 1 and its gradient is lost; divided by its detached value
        # it is still exactly 1, and the router goes on learning from the task loss.
        return gates / (gates.detach() if self.top_k == 1 else gates.sum(dim=-1, keepdim=True))

    def _scaled(self, gates: Tensor) -> Tensor:
        scale = getattr(self, "scale", None)
        if scale is None:
            return gates
        # While the scale is exactly 0 no gradient would reach the router; until it moves, the router learns as if
        # the scale were 1. The added term is 0.
        alive = (scale.detach() == 0).to(gates.dtype)
        return cast(Tensor, scale * gates + alive * (gates - gates.detach()))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Router:
        super()._apply(keeping_float32(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def keeping_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` (a move or a cast, as `nn.Module._apply` gets it) that moves float32 tensors but does not shorten them."""

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        shortened = tensor.dtype == torch.float32 and result.dtype in (torch.float16, torch.bfloat16)
        return tensor.to(result.device) if shortened else result

    return moved
