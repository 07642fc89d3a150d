"""Which models fit a memory budget, weighed from configs alone: the table of `mote-quant plan --budget`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mote_quant.errors import RequestError
from mote_quant.planning import skeleton_for
from mote_quant.sweeps.budgets import Budget
from mote_quant.sweeps.candidates import without_teacher
from mote_quant.sweeps.jobs.weigh import dense_bytes, weighed_on
from mote_quant.sweeps.load import Source, load_sweep
from mote_quant.sweeps.room import Run, budgets_for, run_for
from mote_quant.sweeps.schema import Accounting

SHIPPED = "candidates"


@dataclass(frozen=True)
class Row:
    """A candidate: bytes of its feed-forward experts in the three accountings, and of the whole model."""

    contender: str
    group: str
    paper_bytes: int
    stored_bytes: int
    resident_bytes: int
    model_stored_bytes: int
    model_resident_bytes: int

    def matched(self, match: Accounting) -> int:
        """The bytes that budgets are about."""
        size: int = getattr(self, f"{match}_bytes")
        return size


@dataclass(frozen=True)
class CandidateTable:
    """Candidates beside budgets. `rows`: who fits any budget, largest first, then the others, smallest first.

    `groups` are in the order of the list. `dense_bytes` is what relative budgets are relative to; `impossible`: who
    cannot be built on this model, and why.
    """

    model: str
    match: Accounting
    dense_bytes: int
    budgets: tuple[Budget, ...]
    groups: tuple[str, ...]
    rows: tuple[Row, ...]
    impossible: dict[str, str]
    run: Run | None = None

    def left(self, row: Row, budget: Budget) -> int:
        """Bytes that `row` leaves of `budget`; negative by as much as it is too large."""
        return budget.bytes - row.matched(self.match)

    def best(self, budget: Budget) -> dict[str, Row | None]:
        """Of each group the largest that fits; None where none does."""
        chosen: dict[str, Row | None] = dict.fromkeys(self.groups)
        for row in sorted(self.rows, key=lambda row: row.matched(self.match)):
            if self.left(row, budget) >= 0:
                chosen[row.group] = row
        return chosen

    def smallest(self) -> Row:
        """The one to take when nothing fits."""
        return min(self.rows, key=lambda row: row.matched(self.match))

    def unmet(self) -> list[Budget]:
        """The budgets that nothing fits."""
        return [budget for budget in self.budgets if self.left(self.smallest(), budget) < 0]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `mote-quant plan --budget`:

        {"model", "match", "dense_bytes",
         "run": {"context", "batch", "cache_bytes"} or null,
         "budgets": [{"text", "bytes", "best": {group: contender or null}}],
         "candidates": [{"contender", "group", "paper_bytes", "stored_bytes", "resident_bytes", "model_stored_bytes",
                         "model_resident_bytes", "run_bytes" (with the cache) or null, "fits": [text of a budget]}],
         "impossible": {contender: why}}
        """
        return {
            "model": self.model,
            "match": self.match,
            "dense_bytes": self.dense_bytes,
            "run": None if self.run is None else asdict(self.run),
            "budgets": [asdict(budget) | {"best": self._best_names(budget)} for budget in self.budgets],
            "candidates": [self._row_dict(row) for row in self.rows],
            "impossible": self.impossible,
        }

    def run_bytes(self, row: Row) -> int | None:
        """Weights and cache at run time; None when no context was asked for."""
        return None if self.run is None else row.model_resident_bytes + self.run.cache_bytes

    def _best_names(self, budget: Budget) -> dict[str, str | None]:
        return {group: None if row is None else row.contender for group, row in self.best(budget).items()}

    def _row_dict(self, row: Row) -> dict[str, Any]:
        fits = [budget.text for budget in self.budgets if self.left(row, budget) >= 0]
        return asdict(row) | {"run_bytes": self.run_bytes(row), "fits": fits}


def weigh_candidates(
    model: Any,
    budgets: Sequence[str],
    *,
    match: Accounting = "stored",
    context: int | None = None,
    batch: int = 1,
    source: Source = SHIPPED,
    overrides: Sequence[str] = (),
) -> CandidateTable:
    """Weigh every candidate of the sweep `source` on `model`, without weights, in seconds.

    `model` is anything `plan` takes; `budgets` are sizes (`3.4GB`) or relative to the dense feed-forward blocks in
    bfloat16 (`0.75x`). Raises RequestError: bad budgets, an unknown model, a list of which nothing can be built.
    """
    loaded = load_sweep(source, overrides)
    skeleton = skeleton_for(model)
    allowed = budgets_for(budgets, skeleton)
    weights = weighed_on(skeleton, {made.name: without_teacher(made.recipe) for made in loaded.candidates})
    rows = [Row(m.name, m.group, **weights[m.name]) for m in loaded.candidates if "error" not in weights[m.name]]
    groups = tuple(dict.fromkeys(row.group for row in rows))
    impossible = {name: weight["error"] for name, weight in weights.items() if "error" in weight}
    if not rows:
        raise RequestError(f"no candidate can be built on this model: {next(iter(impossible.values()))}")
    rows = _in_order(rows, allowed, match)
    run = run_for(skeleton, context, batch)
    return CandidateTable(_name(model), match, dense_bytes(skeleton), allowed, groups, tuple(rows), impossible, run)


def _in_order(rows: Sequence[Row], budgets: Sequence[Budget], match: Accounting) -> list[Row]:
    largest = max((budget.bytes for budget in budgets), default=0)
    by_size = sorted(rows, key=lambda row: row.matched(match))
    fitting = [row for row in reversed(by_size) if row.matched(match) <= largest]
    return fitting + [row for row in by_size if row.matched(match) > largest]


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str) else str(getattr(model, "name_or_path", "") or type(model).__name__)
