"""One row of bench.json: two contenders on one task, and how their times compare."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from eval.benchmarks.targets import AT_MOST, target_of


@dataclass(frozen=True)
class Row:
    """`ratio` is peer / ours, so that above 1 we are faster; of the ids in `targets.AT_MOST` it is ours / peer.

    `ratio_spread` are the quartiles of the ratios of single rounds. A summary has no `shape`: its ratio is the
    geometric mean over shapes, its spread the smallest and the largest of them. Times are medians, in seconds.
    `read_bytes` and `operations` (integer ones, on `threads` threads) are the least that ours has to do; 0: not known.
    """

    id: str
    ours: str
    peer: str
    ratio: float
    ratio_spread: tuple[float, float]
    shape: tuple[int, ...] = ()
    threads: int = 1
    tokens: int | None = None
    ours_s: float | None = None
    peer_s: float | None = None
    dtype: str = "bfloat16"
    note: str = ""
    read_bytes: int = 0
    operations: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping of its fields; what the table of targets says is left out: it is looked up again."""
        known = {field.name for field in fields(cls)}
        return cls(**{"ours": "ours"} | {key: value for key, value in values.items() if key in known})

    def to_dict(self, amx: bool) -> dict[str, Any]:
        """As in bench.json, with the target and whether it is met: None where there is none for this machine."""
        target = target_of(self.id, self.ours, self.tokens, self.dtype)
        bound = None if target is None else target.bound(amx)
        met = None if target is None or bound is None else target.met(self.ratio, bound)
        return asdict(self) | {"target": bound, "met": met}


def compared(id: str, ours: str, peer: str, times: Mapping[str, Sequence[float]], **more: Any) -> Row:
    """A row of the seconds of two contenders in `times`, round by round, by their names."""
    above, below = (times[ours], times[peer]) if id in AT_MOST else (times[peer], times[ours])
    rounds = [one / other for one, other in zip(above, below, strict=True)]
    ratio = statistics.median(above) / statistics.median(below)
    made = Row(id, ours, peer, ratio, quartiles(rounds), **more)
    return replace(made, ours_s=statistics.median(times[ours]), peer_s=statistics.median(times[peer]))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def summary(rows: Sequence[Row]) -> Row:
    """The geometric mean of rows that differ in their shapes."""
    ratios = [row.ratio for row in rows]
    peers = " / ".join(dict.fromkeys(row.peer for row in rows))
    shapes = ", ".join("x".join(map(str, row.shape)) for row in rows)
    made = replace(rows[0], peer=peers, ratio=_mean(ratios) or 0.0, ratio_spread=(min(ratios), max(ratios)))
    seconds = _mean([row.ours_s for row in rows]), _mean([row.peer_s for row in rows])
    made = replace(made, shape=(), read_bytes=0, operations=0, note=f"mean of {shapes}")
    return replace(made, ours_s=seconds[0], peer_s=seconds[1])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.exp(statistics.fmean(map(math.log, known))) if len(known) == len(values) else None


def with_means(rows: Sequence[Row]) -> list[Row]:
    """The rows, and a summary for each id, contender and type that was measured on several shapes."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.id, row.ours, row.dtype), []).append(row)
    return [*rows, *(summary(group) for group in groups.values() if len(group) > 1)]
