"""What routers did over a stretch of training: sums on the device, looked at once at its end."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mote_quant.moe import blocks
from mote_quant.moe.losses import balance_loss, expert_load
from mote_quant.moe.pull import in_backward
from mote_quant.moe.router import Choice
from mote_quant.ranks import mean
from mote_quant.watching.places import layer_of


class Tally:
    """Token-weighted sums over the forwards of one router: expert load [E], balance, entropy in nats, tokens."""

    def __init__(self, experts: int) -> None:
        self._none = torch.zeros(experts + 3)
        self.sums = self._none

    @torch.no_grad()
    def add(self, choice: Choice) -> None:
        """One forward in training."""
        load, p = expert_load(choice), choice.probabilities
        # Of the logits: cheaper than a logarithm of each probability, and finite where one is 0.
        entropy = choice.logits.logsumexp(dim=-1) - (p * choice.logits).sum(dim=-1)
        scalars = torch.stack([balance_loss(choice, load), entropy.mean(), torch.ones_like(entropy[0])])
        self.sums = self.sums.to(p.device) + torch.cat([load, scalars]) * len(p)

    def take(self) -> Tensor:
        """The sums since this was last called."""
        taken, self.sums = self.sums, self._none
        return taken


class RoutingMeter:
    """Load, balance and entropy of every mixture layer of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._blocks = {layer_of(name): block for name, block in blocks(model).items()}
        self._tallies = {name: Tally(block.layout.experts) for name, block in self._blocks.items()}
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Watch from now on."""
        for name, block in self._blocks.items():
            self._handles.append(block.gate.register_forward_hook(_adding_to(self._tallies[name])))

    def stop(self) -> None:
        """Leave the model as it was."""
        while self._handles:
            self._handles.pop().remove()

    def take(self) -> dict[str, dict[str, Any]]:
        """Of each layer `load` [E], `balance` (1.0 = uniform) and `entropy` in nats, means over all tokens since this
        was last called, of all processes; to be called by all of them.
        """
        if not self._tallies:
            return {}
        taken = [tally.take() for tally in self._tallies.values()]
        device = next(iter(self._blocks.values())).gate.weight.device
        together = mean(torch.cat([sums.to(device) for sums in taken])).cpu()
        parts = zip(self._tallies, torch.split(together, [len(sums) for sums in taken]), strict=True)
        return {name: _described(sums) for name, sums in parts if sums[-1] > 0}


def _adding_to(tally: Tally) -> Any:
    """A forward hook of a router in training."""

    def add(gate: nn.Module, args: Any, choice: Choice) -> None:
        # A layer that is computed again in backward was counted before.
        if gate.training and len(choice.logits) and not in_backward():
            tally.add(choice.detached())

    return cast(Any, torch.compiler).disable(add)


def _described(sums: Tensor) -> dict[str, Any]:
    *load, balance, entropy = (sums[:-1] / sums[-1]).tolist()
    return {"load": [round(share, 5) for share in load], "balance": round(balance, 5), "entropy": round(entropy, 5)}
