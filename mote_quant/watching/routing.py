"""What routers did over a stretch of training: sums on the device, looked at once at its end."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mote_quant.moe import blocks
from mote_quant.moe.losses import expert_load
from mote_quant.moe.pull import in_backward
from mote_quant.moe.router import Choice
from mote_quant.ranks import mean
from mote_quant.watching.places import layer_of


class Tally:
    """Sums over the tokens of one router: choices that fell on each expert [E], over top-k; probabilities [E]; entropy
    in nats; tokens.
    """

    def __init__(self, experts: int) -> None:
        self._none = torch.zeros(2 * experts + 2)
        self.sums = self._none

    @torch.no_grad()
    def add(self, choice: Choice) -> None:
        """One forward in training."""
        p = choice.probabilities
        # Of the logits: cheaper than a logarithm of each probability, and finite where one is 0.
        entropy = choice.logits.logsumexp(dim=-1) - (p * choice.logits).sum(dim=-1)
        added = [expert_load(choice) * len(p), p.sum(dim=0), entropy.sum().view(1), p.new_full((1,), len(p))]
        self.sums = self.sums.to(p.device) + torch.cat(added)

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
        """Of each layer `load` [E], `balance` (1.0 = uniform) and mean `entropy` in nats, of all tokens since this was
        last called, in all processes; to be called by all of them.
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
    experts = (len(sums) - 2) // 2
    load, probabilities, (entropy, _) = torch.split(sums / sums[-1], [experts, experts, 2])
    balance = experts * float((load * probabilities).sum())
    shares = [round(share, 5) for share in load.tolist()]
    return {"load": shares, "balance": round(balance, 5), "entropy": round(float(entropy), 5)}
