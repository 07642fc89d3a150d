"""What a sweep found, in words: who is ahead at each budget, by how much, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mote_quant.memory.units import human_bytes
from mote_quant.sweeps.report.fronts import best_that_fit
from mote_quant.sweeps.report.metrics import Kind, kind_of
from mote_quant.sweeps.report.statistics import FEW, Contender, Difference, Document, contenders, paired

OURS = "MoTE"


@dataclass(frozen=True)
class Headline:
    """One sentence, of the `place` it speaks of and the `claim` it makes.

    `verdict`: `ahead`, `behind`, `even`, `unsure` (one seed) or `none` (nothing to compare).
    """

    verdict: str
    place: str
    claim: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.place}, {self.claim}" if self.place else self.claim


def ours_of(document: Document) -> str:
    """The group the sweep is about."""
    return str(document["sweep"].get("ours") or OURS)


def headlines(document: Document, ours: str | None = None) -> list[Headline]:
    """A line for each budget and each other group; without budgets, at the bytes our best contender has.

    `ours` is the group to compare with all others, by default the one the sweep is about.
    """
    ours = ours or ours_of(document)
    if ours not in _groups(document):
        return []
    accounting = document["sweep"]["match"]
    budgets = document["sweep"].get("budgets") or []
    if budgets:
        return [
            line
            for budget in budgets
            for line in _at(document, ours, f"at {budget['text']} ({accounting})", budget["bytes"], "that fits")
        ]
    mine = best_that_fit(document, math.inf, accounting).get(ours)
    if mine is None:
        return [Headline("none", "", f"no {ours} has a score")]
    size = mine.size(accounting)
    return _at(document, ours, f"at {human_bytes(size)} ({accounting})", size, "of no more bytes")


def caveats(document: Document, ours: str | None = None) -> list[str]:
    """What a reader of the headlines must know."""
    notes = []
    seeds = max((len(contender.points) for contender in contenders(document)), default=0)
    if headlines(document, ours) and seeds < FEW:
        counted = "one seed" if seeds == 1 else f"{seeds} seeds"
        notes.append(
            f"With {counted} there is no interval."
            if seeds < 2
            else f"With {counted} a 95 % interval is little more than the range of the differences seen: chance alone "
            f"puts all of them on one side in {100 * 2 ** (1 - seeds):.0f} % of comparisons."
        )
    if headlines(document, ours):
        notes.append("The best of a group is picked by the score it is then compared on.")
    edges = [row["family"] for row in document.get("grid") or [] if row.get("edge")]
    if edges:
        notes.append(f"Chosen at the edge of the grid of rates, so a wider grid may do better: {', '.join(edges)}.")
    if failed := len(document.get("failures") or []):
        notes.append(f"{failed} {'failure is' if failed == 1 else 'failures are'} listed below.")
    return notes


def _groups(document: Document) -> list[str]:
    return list(dict.fromkeys(contender.group for contender in contenders(document)))


def _at(document: Document, ours: str, place: str, limit: int, which: str) -> list[Headline]:
    """Our best against the best of every other group, all of at most `limit` bytes."""
    best = best_that_fit(document, limit, document["sweep"]["match"])
    if ours not in best:
        return [Headline("none", place, f"no {ours} fits")]
    others = [group for group in _groups(document) if group != ours]
    return [_line(document, place, best[ours], group, best.get(group), which) for group in others]


def _line(
    document: Document, place: str, ours: Contender, group: str, theirs: Contender | None, which: str
) -> Headline:
    sweep = document["sweep"]
    kind = kind_of(sweep["score"], sweep)
    we = f"{ours.group} ({ours.name})"
    if theirs is None:
        mean = ours.metrics[sweep["score"]].mean
        return Headline("none", place, f"no {group} fits; {we} has {sweep['score']} {kind.value(mean)}")
    they = f"the best {group} {which} ({theirs.name})"
    difference = paired(ours, theirs, sweep["score"], higher_is_better=sweep["higher_is_better"])
    if difference is None:
        return Headline("none", place, f"{we} and {they} share no seed, so they cannot be compared")
    verdict = _verdict(difference)
    return Headline(verdict, place, _WORDS[verdict].format(we=we, they=they, by=_amount(difference, kind)))


_WORDS = {
    "ahead": "{we} beats {they} by {by}",
    "behind": "{we} is behind {they} by {by}",
    "even": "{we} and {they} cannot be told apart: {by}",
    "unsure": "{we} against {they}: {by}",
}


def _verdict(difference: Difference) -> str:
    """One seed decides nothing, and neither does an interval with 0 in it."""
    if difference.low is None:
        return "unsure"
    if not difference.decided:
        return "even"
    return "ahead" if difference.mean > 0 else "behind"


def _amount(difference: Difference, kind: Kind) -> str:
    """`1.3 ± 0.4 points (95 % interval 0.9 to 1.7, 3 seeds)`, seen from whoever is ahead."""
    flip = -1.0 if difference.decided and difference.mean < 0 else 1.0
    digits = kind.digits_for(difference.mean)
    mean = _signed(flip * difference.mean, kind, digits, plus=not difference.decided)
    if difference.sd is None or difference.low is None or difference.high is None:
        return f"{mean} {kind.apart} (1 seed, so no interval)".replace("  ", " ")
    low, high = sorted((flip * difference.low, flip * difference.high))
    held = "" if difference.decided else ", which includes 0"
    return (
        f"{mean} ± {kind.number(difference.sd, digits)} {kind.apart} (95 % interval "
        f"{_signed(low, kind, digits)} to {_signed(high, kind, digits)}{held}, {len(difference.seeds)} seeds)"
    ).replace("  ", " ")


def _signed(value: float, kind: Kind, digits: int, *, plus: bool = False) -> str:
    """A number with its minus, and with a plus where the sign is the news; never `-0.0`."""
    text = kind.number(abs(value), digits)
    if not any(figure in text for figure in "123456789"):
        return text
    return f"-{text}" if value < 0 else f"+{text}" if plus else text
