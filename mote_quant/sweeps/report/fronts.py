"""Who is worth having at which size: the front per accounting, and the best of each group that fits."""

from __future__ import annotations

from collections.abc import Sequence

from mote_quant.evaluate.pareto import front
from mote_quant.sweeps.report.statistics import ACCOUNTINGS, Contender, Document, contenders


def goodness(contender: Contender, document: Document) -> float | None:
    """The mean score, turned so that more is better; None where no seed has one."""
    found = contender.score(document["sweep"]["score"])
    if found is None:
        return None
    return found.mean if document["sweep"]["higher_is_better"] else -found.mean


def scored(document: Document) -> list[tuple[Contender, float]]:
    """The contenders that have a score, each with its goodness."""
    pairs = ((contender, goodness(contender, document)) for contender in contenders(document))
    return [(contender, good) for contender, good in pairs if good is not None]


def fronts(document: Document) -> dict[str, list[Contender]]:
    """Accounting -> the contenders that no other beats on bytes and mean score, smallest first."""
    return {accounting: _front(scored(document), accounting) for accounting in ACCOUNTINGS}


def _front(candidates: Sequence[tuple[Contender, float]], accounting: str) -> list[Contender]:
    best = front(candidates, lambda pair: pair[0].size(accounting), lambda pair: pair[1])
    return [contender for contender, _ in best]


def best_that_fit(document: Document, limit: float, accounting: str) -> dict[str, Contender]:
    """Group -> its best contender of at most `limit` bytes; among equals the smaller, then the first."""
    return _best([(c, good) for c, good in scored(document) if c.size(accounting) <= limit], accounting)


def _best(candidates: Sequence[tuple[Contender, float]], accounting: str) -> dict[str, Contender]:
    best: dict[str, Contender] = {}
    for contender, _ in sorted(candidates, key=lambda pair: (-pair[1], pair[0].size(accounting))):
        best.setdefault(contender.group, contender)
    return best
