"""The mixture layer: shared expert + router + routed experts, in the place of a dense feed-forward block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from mote_quant.moe.experts import Expert, Experts, visit
from mote_quant.moe.layout import MoteLayout
from mote_quant.moe.lora import Dense, mixture, pass_up
from mote_quant.moe.losses import attach, balance_loss, expert_load, z_loss
from mote_quant.moe.packed import activation_name, packed_route
from mote_quant.moe.partaking import load_of_all
from mote_quant.moe.pull import Pulls
from mote_quant.moe.router import Choice, Router, thinned
from mote_quant.ranks import mean


@dataclass(frozen=True)
class Routing:
    """What the last forward did: expert load [E] (sums to 1), balance (1.0 = uniform), entropy in nats."""

    load: Tensor
    balance: Tensor
    entropy: Tensor


def _figures(choice: Choice) -> Routing:
    load, p = expert_load(choice), choice.probabilities
    return Routing(load, balance_loss(choice, load), -(p * p.clamp_min(1e-20).log()).sum(dim=-1).mean())


class DenseKeyGuard(nn.Module):
    """An empty tensor under the dense block's key.

    transformers would fill a *missing* dense weight with random numbers when mote_quant is not imported; a weight of
    another shape it refuses. Zero bytes on disk.
    """

    weight: Tensor

    def __init__(self, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8, device=device))


class MoteBlock(nn.Module):
    """`y = FFN_shared(x) + combine(router(x), experts)`, computed for `x` [..., hidden].

    combine (top-k gates p, experts E, shared S):
      additive   S(x) + sum p E(x)                         (paper-like; not the dense model at step 0)
      convex     (1 - mix) S(x) + mix * sum p E(x)          (with normalised gates)
      zero_init  S(x) + s * sum p E(x), s learned from 0    (exactly the dense model at step 0)
    With `lora_rank` experts are changes of the shared one, added to it (see `mote_quant.moe.lora`).
    """

    parameter_roles: ClassVar[dict[str, str]] = {
        "gate": "router",
        "experts": "routed",
        "shared_expert": "shared",
    }

    def __init__(
        self,
        layout: MoteLayout,
        experts: list[Expert],
        activation: nn.Module,
        shared_expert: nn.Module | None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.gate = Router(layout, device)
        self.experts = Experts(experts)
        if shared_expert is None or not activation.state_dict():
            self.activation = activation
        else:
            # One with weights (xIELU) is the shared expert's: as a child of both it would be saved twice.
            vars(self)["activation"] = activation
        self._activation_name = activation_name(activation)
        if shared_expert is not None:
            self.shared_expert = shared_expert
        if layout.inline:
            self.register_buffer("weight", torch.empty(0, dtype=torch.uint8, device=device))
        else:
            self.add_module(layout.up, DenseKeyGuard(device))
        self.balance_loss = 0.0
        self.z_loss = 0.0
        self.pulls = Pulls()
        self._last: Choice | None = None

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., hidden] -> [..., hidden]; `residual` is added where the model leaves that to its block (BLOOM)."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        choice = self.gate(x)
        if self.layout.skip_below and not self.training:
            choice = thinned(choice, self.layout)
        if self.layout.lora_rank is not None:
            y = mixture(x, self._dense, self.experts, choice, self.activation).view_as(hidden_states)
        else:
            y = self._combine(hidden_states, self._routed(x, choice).view_as(hidden_states), choice)
        y = self._with_losses(y, choice)
        return y if residual is None else y + residual

    @property
    def routing(self) -> Routing | None:
        """What the last forward did; None before there was one with tokens. Counted only when asked for."""
        return None if self._last is None else _figures(self._last)

    @property
    def balance_of_all(self) -> Tensor:
        """The balance of the last forward, over the tokens of all processes; all of them have to ask."""
        if self._last is None:
            return torch.tensor(torch.nan)
        load, probabilities = mean(expert_load(self._last)), mean(self._last.probabilities.mean(dim=0))
        return load.numel() * (load * probabilities).sum()

    def visit(self, index: int, x: Tensor) -> Tensor:
        """What expert `index` makes of tokens `x` [n, hidden], whomever the router would send them to."""
        seen = x if self.layout.lora_rank is None else pass_up(x, self._dense)
        return visit(cast(Expert, self.experts[index]), seen, self.activation)

    def _routed(self, x: Tensor, choice: Choice) -> Tensor:
        packed = packed_route(x, cast("Sequence[Expert]", self.experts), choice, self._activation_name)
        return cast(Tensor, self.experts(x, choice, self.activation)) if packed is None else packed

    @property
    def _dense(self) -> Dense:
        return Dense(self.shared_expert, self.layout)

    def _combine(self, x: Tensor, routed: Tensor, choice: Choice) -> Tensor:
        if not self.layout.shared:
            return routed
        given = (x, torch.zeros_like(x)) if self.layout.residual else (x,)
        shared = cast(Tensor, self.shared_expert(*given))
        routed = routed.to(shared.dtype)
        if self.layout.combine != "convex":
            return shared + routed
        mixed = torch.lerp(shared, routed, self.layout.mix)
        if choice.kept is None:
            return mixed
        return torch.where(choice.kept[:, :1].view(*x.shape[:-1], 1), mixed, shared)

    def _with_losses(self, y: Tensor, choice: Choice) -> Tensor:
        tokens = len(choice.logits)
        if tokens:
            self._last = choice.detached()
        # A frozen router is left alone, and what lies below is not bent to balance it.
        learns = self.training and self.gate.weight.requires_grad and choice.logits.requires_grad
        if not (learns and (self.balance_loss or self.z_loss)):
            return y
        # Of a process without tokens the others still wait to hear.
        load = load_of_all(expert_load(choice), tokens)
        if not tokens:
            return y
        balance = balance_loss(choice, load)
        return attach(y, self.balance_loss * balance + self.z_loss * z_loss(choice), self.pulls)
