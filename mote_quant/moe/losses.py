"""Router losses, and the trick that lets any trainer minimise them: they ride in the graph of the layer's output."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.moe.pull import Pull, Pulls
from mote_quant.moe.router import Choice


def expert_load(choice: Choice) -> Tensor:
    """The share of choices that fell on each expert: float32 [E], sums to 1."""
    experts = choice.probabilities.shape[1]
    counts = torch.bincount(choice.experts.flatten(), minlength=experts)
    return counts.float() / max(choice.experts.numel(), 1)


def balance_loss(choice: Choice, load: Tensor) -> Tensor:
    """`E * sum_i f_i P_i` (Switch, arXiv 2101.03961), f and P each summing to 1: 1.0 means uniform, for any top-k."""
    return load.numel() * (load * choice.probabilities.mean(dim=0)).sum()


def z_loss(choice: Choice) -> Tensor:
    """Mean squared log-partition of the router logits (ST-MoE, arXiv 2202.08906)."""
    return choice.logits.logsumexp(dim=-1).square().mean()


class _Attach(torch.autograd.Function):
    """The identity on `output`; in backward, `loss` gets a gradient as if it had been added to the final loss."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, pull: Pull) -> Tensor:
        ctx.pull = pull
        # No view: some models add to the layer's output in place (Falcon), which autograd forbids for such a view.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], ctx.pull.factor(gradients[0].device), None


def _attach(output: Tensor, loss: Tensor, pulls: Pulls) -> Tensor:
    return cast(Tensor, _Attach.apply(output, loss, pulls.current()))  # type: ignore[no-untyped-call]


# Traced, a backward would have for ever the pull that it was traced with.
_untraced = cast(Any, torch.compiler).disable(_attach)


def attach(output: Tensor, loss: Tensor, pulls: Pulls) -> Tensor:
    """`output` unchanged; whoever calls backward on anything that uses it also minimises the scalar float32 `loss`.

    `pulls` say how much: what a trainer made of the loss of this forward, it makes of this one.
    """
    return cast(Tensor, _untraced(output, loss, pulls))
