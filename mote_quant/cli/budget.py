"""What `mote-quant plan --budget` prints: who fits, by how much, and what to build."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from mote_quant.cli.output import Table, print_json, print_lines, print_tables
from mote_quant.errors import RequestError
from mote_quant.memory.units import human_bytes

if TYPE_CHECKING:
    from mote_quant.sweeps.budgets import Budget
    from mote_quant.sweeps.candidates_table import CandidateTable, Row
    from mote_quant.sweeps.room import RecipeRoom
    from mote_quant.sweeps.schema import Accounting

NEAR = 0.01
"""A candidate this share of a budget too large is worth a word: published sizes are rounded."""


class Match(StrEnum):
    """What budgets count, as an option."""

    stored = "stored"
    paper = "paper"
    resident = "resident"


@dataclass(frozen=True)
class Wish:
    """What `plan` was asked about memory, None where nothing was said."""

    budgets: tuple[str, ...]
    match: Match | None
    candidates: str | None
    context: int | None
    batch: int | None

    @property
    def accounting(self) -> Accounting:
        """What budgets count."""
        return "stored" if self.match is None else self.match.value

    @property
    def sequences(self) -> int:
        """How many sequences the cache is for."""
        return self.batch or 1

    def check(self, recipe: str | None, model: str | None) -> None:
        """RequestError for nothing to do, and for options that would do nothing."""
        wrong = {
            "nothing to plan: give a recipe, or --model and --budget to see what fits": not (recipe or self.budgets),
            "--budget without a recipe needs --model: a folder, a config file, Qwen2.5-3B and the like": not (
                recipe or model
            ),
            "--match says what budgets count: add --budget": self.match and not self.budgets,
            "give a recipe or --candidates, not both": recipe and self.candidates,
            "--batch is about the KV cache: add --context": self.batch and not self.context,
        }
        for message in (message for message, holds in wrong.items() if holds):
            raise RequestError(message)


def show_candidates(table: CandidateTable, as_json: bool) -> None:
    """Print the table, as JSON or for people. RequestError, after that, for a budget that nothing fits."""
    if as_json:
        print_json(table.to_dict())
    else:
        print_tables([_candidates(table), ("Impossible", ["candidate", "why"], [*map(list, table.impossible.items())])])
        print_lines(line for budget in table.budgets for line in in_words(table, budget))
    unmet = table.unmet()
    if unmet:
        smallest = table.smallest()
        size = human_bytes(smallest.matched(table.match))
        texts = ", ".join(budget.text for budget in unmet)
        raise RequestError(
            f"nothing fits {texts}: the smallest candidate, {smallest.contender}, takes {size} of experts "
            f"({table.match}). Raise the budget, or take a smaller model"
        )


def in_words(table: CandidateTable, budget: Budget) -> Iterator[str]:
    """What to build within `budget`, group by group, and who only just misses it."""
    yield f"{budget.text} of experts, {table.match}:"
    for group, row in table.best(budget).items():
        if row is None:
            yield f"  {group}: none fits"
        else:
            size, left = human_bytes(row.matched(table.match)), table.left(row, budget)
            yield f"  {group}: {row.contender} is the largest that fits ({size}, {human_bytes(left)} left)"
    for row in table.rows:
        if -NEAR * budget.bytes <= table.left(row, budget) < 0:
            yield f"  {row.contender} is only {human_bytes(-table.left(row, budget))} too large"


def fit(left: int) -> str:
    """Bytes left of a budget, or beyond it."""
    return f"{human_bytes(left)} left" if left >= 0 else f"{human_bytes(-left)} over"


def _candidates(table: CandidateTable) -> Table:
    run = [] if table.run is None else [f"run, {table.run.context:,} x {table.run.batch} tokens"]
    header = ["candidate", "group", "experts: paper", "stored", "resident", "model: stored", "resident", *run]
    rows = [[*_sizes(table, row), *_fits(table, row)] for row in table.rows]
    title = f"Candidates for {table.model} (cache of {human_bytes(table.run.cache_bytes)})" if table.run else ""
    return title or f"Candidates for {table.model}", [*header, *(budget.text for budget in table.budgets)], rows


def _sizes(table: CandidateTable, row: Row) -> list[str]:
    sizes = [row.paper_bytes, row.stored_bytes, row.resident_bytes, row.model_stored_bytes, row.model_resident_bytes]
    run = table.run_bytes(row)
    return [row.contender, row.group, *map(human_bytes, sizes if run is None else [*sizes, run])]


def _fits(table: CandidateTable, row: Row) -> list[str]:
    return [fit(table.left(row, budget)) for budget in table.budgets]


def room_tables(room: RecipeRoom) -> list[Table]:
    """Whether a recipe fits, and what it needs at run time."""
    size = human_bytes(room.experts_bytes)
    fits = [
        [budget.text, f"{size}, {room.match}", "yes" if room.left(budget) >= 0 else "no", fit(room.left(budget))]
        for budget in room.budgets
    ]
    run = []
    if room.run is not None and room.run_bytes is not None:
        tokens = f"{room.run.context:,} x {room.run.batch}"
        run = [[tokens, human_bytes(room.run.cache_bytes), human_bytes(room.run_bytes)]]
    return [
        ("Does it fit?", ["budget", "its experts", "fits", "by"], fits),
        ("At run time", ["tokens", "KV cache", "with all weights"], run),
    ]
