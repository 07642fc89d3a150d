"""What a mixture layer owes the other processes that train it: the balance of all tokens, and a part for every expert.

The load of the balance loss is that of the whole batch, of which each process sees a share. Engines that average
gradients wait for the same parameters everywhere: an expert no token of this process was sent to has a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mote_quant.ranks import ranks


def several() -> bool:
    """Whether gradients are being made by more than one process."""
    return torch.is_grad_enabled() and ranks().several


def load_of_all(load: Tensor, tokens: int) -> Tensor:
    """The load [E] of all tokens of all processes, of that of the `tokens` of this one; it has no gradient."""
    if not several():
        return load
    total = torch.cat([load, load.new_ones(1)]) * tokens
    dist.all_reduce(total)
    return total[:-1] / total[-1].clamp_min(1)


class _TakePart(torch.autograd.Function):
    """The identity on `output`; in backward every one of `idle` gets a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *idle: Tensor) -> Tensor:
        ctx.shapes = [(parameter.shape, parameter.dtype) for parameter in idle]
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        zeros = [torch.zeros(shape, dtype=dtype, device=gradients[0].device) for shape, dtype in ctx.shapes]
        return gradients[0], *zeros


def take_part(output: Tensor, experts: Sequence[nn.Module], counts: Iterable[int]) -> Tensor:
    """`output`, on which the experts that got none of the tokens (`counts` of them each) depend with gradient 0."""
    if not several():
        return output
    idle = [
        parameter
        for expert, count in zip(experts, counts, strict=True)
        if not count
        for parameter in expert.parameters()
        if parameter.requires_grad
    ]
    return cast(Tensor, _TakePart.apply(output, *idle)) if idle else output  # type: ignore[no-untyped-call]
