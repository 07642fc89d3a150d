"""How strongly a loss pulls on the forward that made it: what a trainer did to that loss is in there.

Router losses are no part of the loss that a trainer sees, so what it does to the one would pass the others by: division
by the number of micro-batches, the scale of float16 training, a micro-batch's share in all tokens of a step. The
gradient that arrives at the loss tells, and it arrives before any layer's backward runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor


class Pull:
    """That of one forward. `share` is the part of a step's tokens this forward had, where its loss is a share, too.

    `rides`: router losses wait for it. `claimed`: another loss than the model's own tells it.
    """

    def __init__(self) -> None:
        self.share: Tensor | float = 1.0
        self.rides = self.claimed = False
        self._factor: Tensor | None = None

    def factor(self, device: torch.device) -> Tensor:
        """What router losses are multiplied by, float32 []; 1 where no backward of a loss has come by."""
        one = torch.ones((), dtype=torch.float32, device=device)
        return one if self._factor is None else self._factor.to(device)

    def arrived(self, gradient: Tensor) -> None:
        """A scalar `gradient` has arrived at the loss."""
        self._factor = gradient.detach().float() * self.share


class Pulls:
    """The pull of each forward of a model, known to its top, where losses are made, and to every mixture layer.

    A forward ends where a loss is made of it. A copy of a layer goes on belonging to the same losses.
    """

    def __init__(self) -> None:
        self.last = Pull()
        self._open = Pull()
        self._replayed = Pull()

    @property
    def unended(self) -> bool:
        """Whether a forward that trains a router waits for its loss."""
        return self._open.rides

    def current(self) -> Pull:
        """Of the forward that runs now: in a backward that is one run again (reentrant checkpointing)."""
        pull = self._replayed if in_backward() else self._open
        pull.rides = True
        return pull

    def end(self) -> Pull:
        """A loss is made: whatever runs from now on belongs to the next one."""
        self.last, self._open = self._open, Pull()
        return self.last

    def replay(self, pull: Pull) -> None:
        """The backward of this forward begins."""
        self._replayed = pull

    def __deepcopy__(self, memo: dict[int, Any]) -> Pulls:
        return self

    def __reduce__(self) -> tuple[type[Pulls], tuple[()]]:
        return Pulls, ()


def in_backward() -> bool:
    """Whether this is called by a backward, as a forward is that gradient checkpointing runs again."""
    return bool(cast(Any, torch)._C._current_graph_task_id() != -1)


class _Felt(torch.autograd.Function):
    """The identity on a loss, or on what one is made of; `pull_of` its gradient is told to a Pull."""

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, pull_of: Callable[[Tensor], Tensor], pull: Pull, pulls: Pulls, outermost: bool
    ) -> Tensor:
        ctx.pull_of, ctx.pull, ctx.pulls, ctx.outermost = pull_of, pull, pulls, outermost
        return given.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if ctx.outermost or not ctx.pull.claimed:
            ctx.pull.arrived(ctx.pull_of(gradients[0]))
        ctx.pulls.replay(ctx.pull)
        return gradients[0], None, None, None, None


def _felt(
    given: Tensor, pull_of: Callable[[Tensor], Tensor], pull: Pull, pulls: Pulls, outermost: bool = False
) -> Tensor:
    return cast(Tensor, _Felt.apply(given, pull_of, pull, pulls, outermost))  # type: ignore[no-untyped-call]


def _of_loss(gradient: Tensor) -> Tensor:
    return gradient


def _of_log_probs(gradient: Tensor, counted: Tensor) -> Tensor:
    """Of a loss that a trainer makes itself, of log-probabilities of tokens.

    Where all `counted` ones are weighed alike the loss is their negative mean, over as many as it may be, and their
    number times that weight is its pull. Any other loss (of preferences, say) is taken for whole: a pull of 1.
    """
    weights = -gradient.float()
    least = weights.where(counted, torch.inf).amin()
    most = weights.where(counted, -torch.inf).amax()
    alike = (least == most) & (most > 0)
    return torch.where(counted.any(), torch.where(alike, most * counted.sum(), 1.0), 0.0)


def felt(loss: Tensor, pulls: Pulls, share: Tensor | float = 1.0) -> Tensor:
    """`loss`, unchanged, as the end of the forward that made it."""
    pull = pulls.end()
    pull.share = share
    return _felt(loss, _of_loss, pull, pulls)


def felt_by_tokens(log_probs: Tensor, counted: Tensor, pulls: Pulls) -> Tensor:
    """The same for the log-probabilities of tokens [...] of which a trainer makes a loss; `counted` [...] are bool."""
    return _felt(log_probs, partial(_of_log_probs, counted=counted), pulls.end(), pulls)


def felt_instead(loss: Tensor, pulls: Pulls, share: Tensor | float | None = None) -> Tensor:
    """`loss`, made of what the last forward gave, in the place of the model's own; `share` is the same without one."""
    pull = pulls.end() if pulls.unended else pulls.last
    pull.claimed = True
    if share is not None:
        pull.share = share
    return _felt(loss, _of_loss, pull, pulls, outermost=True)
