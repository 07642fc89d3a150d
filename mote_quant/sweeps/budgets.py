"""Who fits which budget, and why others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mote_quant.memory.units import human_bytes
from mote_quant.sweeps.candidates import Candidate
from mote_quant.sweeps.schema import Sweep, budget_bytes

Weights = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Budget:
    """A budget as it was written, and in bytes."""

    text: str
    bytes: int


@dataclass
class Selection:
    """Who takes part, with the budgets they fit; who does not fit; who cannot be built at all."""

    budgets: list[Budget]
    fits: dict[str, list[str]] = field(default_factory=dict)
    misfits: list[dict[str, str]] = field(default_factory=list)
    impossible: list[dict[str, str]] = field(default_factory=list)
    unmet: dict[str, str] = field(default_factory=dict)
    """Budgets that nobody is within -> who comes nearest."""


def select(sweep: Sweep, candidates: Sequence[Candidate], weights: Weights, dense_bytes: int) -> Selection:
    """Everybody without budgets; with them, of each line and budget the one with the most experts that fits."""
    selection = Selection([Budget(text, budget_bytes(text, dense_bytes)) for text in sweep.budgets])
    for candidate in candidates:
        error = weights[candidate.name].get("error")
        if error:
            selection.impossible.append({"contender": candidate.name, "error": error})
    for line in _lines([c for c in candidates if "error" not in weights[c.name]]):
        sizes = {candidate.name: int(weights[candidate.name][f"{sweep.match}_bytes"]) for candidate in line}
        if not selection.budgets:
            selection.fits |= {name: [] for name in sizes}
        for budget in selection.budgets:
            _fit(selection, sizes, budget, sweep.match)
    order = [candidate.name for candidate in candidates]
    selection.fits = dict(sorted(selection.fits.items(), key=lambda item: order.index(item[0])))
    _fill_up(selection, weights, sweep.match)
    return selection


def _lines(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates that differ in nothing but their number of experts."""
    lines: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        lines.setdefault((candidate.family, candidate.variant), []).append(candidate)
    return list(lines.values())


def _fit(selection: Selection, sizes: Mapping[str, int], budget: Budget, match: str) -> None:
    fitting = [name for name, size in sizes.items() if size <= budget.bytes]
    if fitting:
        selection.fits.setdefault(max(fitting, key=lambda name: sizes[name]), [])
        return
    smallest = min(sizes, key=lambda name: sizes[name])
    why = f"its experts take {human_bytes(sizes[smallest])} ({match}), {human_bytes(budget.bytes)} are allowed"
    selection.misfits.append({"contender": smallest, "budget": budget.text, "why": why})


def _fill_up(selection: Selection, weights: Weights, match: str) -> None:
    """Everybody who takes part, with all budgets they are within."""
    for name in selection.fits:
        size = int(weights[name][f"{match}_bytes"])
        selection.fits[name] = [budget.text for budget in selection.budgets if size <= budget.bytes]
    sizes = {name: int(found[f"{match}_bytes"]) for name, found in weights.items() if "error" not in found}
    for budget in selection.budgets:
        if sizes and not any(size <= budget.bytes for size in sizes.values()):
            name = min(sizes, key=lambda name: sizes[name])
            selection.unmet[budget.text] = f"nothing fits; the smallest is {name} with {human_bytes(sizes[name])}"
