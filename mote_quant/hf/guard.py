"""A guard against loss spikes: what it has seen, what it calls a spike, and what it has done about those so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mote_quant.errors import SpikeError


@dataclass(frozen=True)
class Rollback:
    """The loss of step `step` (from 0) was a spike; training went on from step `back_to`, without that step's data.

    `loss` is None where it, or its gradient, was not finite, `usual` (the median it was held against) before the window
    was full.
    """

    step: int
    loss: float | None
    usual: float | None
    back_to: int
    rate: float


class LossGuard:
    """Judges the loss of every step before the weights move. A loss over `factor` x the median of the last `window`
    losses, or what is not finite, raises SpikeError; steps that were spikes before are skipped.
    """

    def __init__(self, factor: float, window: int, rollbacks: Sequence[Rollback] = ()) -> None:
        self._factor = factor
        self._window = window
        self._losses: list[float] = []
        self._parts: list[float] = []
        self.rollbacks = list(rollbacks)

    @property
    def rate(self) -> float:
        """What all learning rates are multiplied with."""
        return self.rollbacks[-1].rate if self.rollbacks else 1.0

    @property
    def usual(self) -> float | None:
        """The median of a full window."""
        return median(self._losses) if len(self._losses) == self._window else None

    def skips(self, step: int) -> bool:
        """Whether step `step` (from 0) is to pass without its data."""
        return any(rollback.step == step for rollback in self.rollbacks)

    def add(self, loss: float) -> None:
        """What a micro-batch adds to the loss of the step, the same in all processes."""
        self._parts.append(loss)

    def judge(self, step: int, gradients: bool = True) -> None:
        """Take the loss of step `step` into account. SpikeError where it is one, or `gradients` are not all finite."""
        parts, self._parts = self._parts, []
        if self.skips(step):
            return
        loss, usual = sum(parts), self.usual
        if not math.isfinite(loss) or (usual is not None and loss > self._factor * usual):
            raise SpikeError(self._in_words(step, loss, usual), step, loss, usual)
        if not gradients:
            raise SpikeError(f"the gradient is not finite after step {step}", step, math.nan, usual)
        self._losses = [*self._losses, loss][-self._window :]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-ready."""
        return {"losses": self._losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._losses, self._parts = list(state["losses"]), []

    def told(self) -> list[dict[str, Any]]:
        """What was done, for the report."""
        return [asdict(rollback) for rollback in self.rollbacks]

    def _in_words(self, step: int, loss: float, usual: float | None) -> str:
        median_of = "" if usual is None else f"; {usual:.4g} is the median of the last {self._window} losses"
        over = f", guard.factor {self._factor:g}" if usual is not None and math.isfinite(loss) else ""
        return f"the loss is {loss:.4g} after step {step}{median_of}{over}"
