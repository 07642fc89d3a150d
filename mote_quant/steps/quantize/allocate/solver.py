"""The cheapest way, in predicted loss, to spend a budget: one option for each unit, exactly.

A multiple-choice knapsack. Unit by unit, the undominated (cost, loss) pairs are kept: those that no other pair beats on
both. Pairs that cannot lead to anything better than a known solution are dropped on the way, by the bound of the linear
relaxation of what is still to be decided; so the result stays optimal while the pairs stay few.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.int64]
Losses = NDArray[np.float64]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Option:
    """What one choice for a unit costs (in bytes, or any other whole number) and the loss it is predicted to cause."""

    cost: int
    loss: float


@dataclass(frozen=True)
class Solution:
    """The option of each unit by its index, with their summed cost and loss."""

    chosen: tuple[int, ...]
    cost: int
    loss: float


@dataclass(frozen=True)
class _Front:
    """Undominated pairs, costs rising and losses falling, and where each came from: pair before, option taken."""

    costs: Costs
    losses: Losses
    before: NDArray[np.int64]
    option: NDArray[np.int64]


def least_cost(units: Sequence[Sequence[Option]]) -> int:
    """What the cheapest options cost together: no budget below this can be met."""
    return sum(min(option.cost for option in options) for options in units)


def solve(units: Sequence[Sequence[Option]], budget: int) -> Solution | None:
    """The options of least summed loss whose summed cost is within `budget`; None when nothing is.

    Losses must be finite.
    """
    if least_cost(units) > budget:
        return None
    relaxed = _Relaxed.of(units)
    best = relaxed.rounded(budget)
    fronts: list[_Front] = []
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    for place, options in enumerate(units):
        front = _extended(costs, losses, options)
        spent, reached = relaxed.tail(place + 1)
        # What is still to be decided costs at least `spent[0]`, and loses at least what the relaxation loses.
        bound = front.losses + np.interp(budget - front.costs, spent, reached)
        keep = (front.costs + spent[0] <= budget) & (bound <= best + _ROUNDING * (1.0 + abs(best)))
        fronts.append(_Front(front.costs[keep], front.losses[keep], front.before[keep], front.option[keep]))
        costs, losses = fronts[-1].costs, fronts[-1].losses
    return _traced(fronts, units)


def _extended(costs: Costs, losses: Losses, options: Sequence[Option]) -> _Front:
    """Every pair with every option, without those that are dominated."""
    pairs = len(costs)
    summed = np.concatenate([costs + option.cost for option in options])
    lost = np.concatenate([losses + option.loss for option in options])
    order = np.lexsort((lost, summed))
    lowest = np.minimum.accumulate(lost[order])
    better = np.concatenate([[True], lost[order][1:] < lowest[:-1]])
    kept = order[better]
    return _Front(summed[kept], lost[kept], kept % pairs, kept // pairs)


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, from the cheapest to the one of least loss."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.cost, each.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(first: Option, second: Option) -> float:
    return (second.loss - first.loss) / (second.cost - first.cost)


@dataclass(frozen=True)
class _Relaxed:
    """The linear relaxation: each unit starts at its cheapest option and climbs its hull, the steepest steps first.

    `least` and `most` are cost and loss of the cheapest options, by unit; the steps of all units are sorted by slope.
    """

    least: Costs
    most: Losses
    unit: NDArray[np.int64]
    extra: Costs
    change: Losses

    @classmethod
    def of(cls, units: Sequence[Sequence[Option]]) -> _Relaxed:
        hulls = [_hull(options) for options in units]
        steps = sorted(
            (_slope(low, high), unit, high.cost - low.cost, high.loss - low.loss)
            for unit, hull in enumerate(hulls)
            for low, high in itertools.pairwise(hull)
        )
        return cls(
            np.array([hull[0].cost for hull in hulls], np.int64),
            np.array([hull[0].loss for hull in hulls], np.float64),
            np.array([unit for _, unit, _, _ in steps], np.int64),
            np.array([cost for _, _, cost, _ in steps], np.int64),
            np.array([change for *_, change in steps], np.float64),
        )

    def tail(self, place: int) -> tuple[Costs, Losses]:
        """The units from `place` on: the least loss they can have by what they cost, as a falling convex line."""
        later = self.unit >= place
        costs, losses = np.append(0, self.extra[later].cumsum()), np.append(0.0, self.change[later].cumsum())
        return costs + self.least[place:].sum(), losses + self.most[place:].sum()

    def rounded(self, budget: int) -> float:
        """The loss of a solution within the budget: every step that can still be paid, the steepest first."""
        left, loss = budget - int(self.least.sum()), float(self.most.sum())
        stopped: set[int] = set()
        for unit, extra, change in zip(self.unit.tolist(), self.extra.tolist(), self.change.tolist(), strict=True):
            if unit not in stopped and extra <= left:
                left, loss = left - extra, loss + change
            else:
                stopped.add(unit)
        return loss


def _traced(fronts: Sequence[_Front], units: Sequence[Sequence[Option]]) -> Solution:
    """The options that led to the last pair of the last front, which has the least loss."""
    chosen: list[int] = []
    at = len(fronts[-1].costs) - 1 if fronts else 0
    for front in reversed(fronts):
        chosen.append(int(front.option[at]))
        at = int(front.before[at])
    chosen.reverse()
    taken = [options[index] for options, index in zip(units, chosen, strict=True)]
    return Solution(tuple(chosen), sum(each.cost for each in taken), sum(each.loss for each in taken))
