"""What the seeds say: each contender's mean and spread, and the paired difference of two contenders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

import numpy as np

Document = Mapping[str, Any]
Point = Mapping[str, Any]

ACCOUNTINGS = ("paper", "stored", "resident")
SIZES = (*(f"{name}_bytes" for name in ACCOUNTINGS), "model_stored_bytes", "model_resident_bytes")
IDENTITY = ("contender", "family", "group", "seed", "learning_rate")
FEW = 5
"""Below this many seeds a bootstrap interval is little more than the range of what was seen."""
_RESAMPLES = 10_000
_TAILS = (2.5, 97.5)


def number(value: Any) -> float | None:
    """`value` if it is a finite number (a bool is none), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1; None for one value) of the values that are there."""

    mean: float
    sd: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """The `Spread` of at least one value, rounded once: equal values are equal whatever their order, their sd is 0."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Contender:
    """One contender over its seeds. `points` are its lines of the document, by seed."""

    name: str
    family: str
    group: str
    points: tuple[Point, ...]

    @cached_property
    def metrics(self) -> dict[str, Spread]:
        """Every number that was measured, over the seeds that have it."""
        keys = dict.fromkeys(key for point in self.points for key in point if key not in (*IDENTITY, *SIZES))
        found = {key: list(self.values(key).values()) for key in keys}
        return {key: spread(values) for key, values in found.items() if values}

    def values(self, key: str) -> dict[int, float]:
        """Seed -> value, where there is a finite one."""
        pairs = ((point["seed"], number(point.get(key))) for point in self.points)
        return {seed: value for seed, value in pairs if value is not None}

    def size(self, accounting: str) -> int:
        """Bytes of the feed-forward experts; every seed has the same."""
        return int(self.points[0][f"{accounting}_bytes"])

    def score(self, key: str) -> Spread | None:
        """The `Spread` of one metric, None where no seed has it."""
        return self.metrics.get(key)


def contenders(document: Document) -> list[Contender]:
    """The contenders with points, in the document's order."""
    lines: dict[str, list[Point]] = {}
    for point in document["points"]:
        lines.setdefault(point["contender"], []).append(point)
    return [
        Contender(name, rows[0]["family"], rows[0]["group"], tuple(sorted(rows, key=lambda point: point["seed"])))
        for name, rows in lines.items()
    ]


@dataclass(frozen=True)
class Difference:
    """How much better one contender is than another, seed by seed: positive where the first is better."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]

    @property
    def decided(self) -> bool:
        """Whether there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def paired(ours: Contender, theirs: Contender, key: str, *, higher_is_better: bool = True) -> Difference | None:
    """The difference in `key` over the seeds both have, with the percentile bootstrap's 95 % interval of its mean.

    None when they share no seed; no interval with one seed. Pairing takes out what a seed does to both
    (Efron & Tibshirani 1993, chapters 8 and 13).
    """
    mine, others = ours.values(key), theirs.values(key)
    seeds = tuple(sorted(mine.keys() & others.keys()))
    if not seeds:
        return None
    sign = 1.0 if higher_is_better else -1.0
    differences = [sign * (mine[seed] - others[seed]) for seed in seeds]
    found = spread(differences)
    low, high = _interval(differences) if len(seeds) > 1 else (None, None)
    return Difference(found.mean, found.sd, low, high, seeds)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the mean over resampled seeds; the same draws every time."""
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(axis=1), _TAILS)
    return float(low), float(high)
