"""What there is room for: budgets in bytes, the cache at run time, and whether a planned recipe fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mote_quant.memory.cache import cache_bytes
from mote_quant.planning import Plan
from mote_quant.sweeps.budgets import Budget
from mote_quant.sweeps.jobs.weigh import dense_bytes, expert_bytes
from mote_quant.sweeps.schema import Accounting, budget_bytes


@dataclass(frozen=True)
class Run:
    """What a model needs beside its weights: keys and values of `batch` sequences of `context` tokens."""

    context: int
    batch: int
    cache_bytes: int


@dataclass(frozen=True)
class RecipeRoom:
    """What the experts of one recipe take in the accounting `match`, beside budgets; `run_bytes`: weights and cache."""

    match: Accounting
    experts_bytes: int
    budgets: tuple[Budget, ...]
    run: Run | None
    run_bytes: int | None

    def left(self, budget: Budget) -> int:
        """Bytes left of `budget`; negative by as much as the experts are too large."""
        return budget.bytes - self.experts_bytes

    def to_dict(self) -> dict[str, Any]:
        """What `mote-quant plan RECIPE --json` says in addition when asked for it: `budgets`, `run`.

        {"budgets": [{"text", "bytes", "match", "experts_bytes", "left_bytes", "fits"}],
         "run": {"context", "batch", "cache_bytes", "run_bytes"}}
        """
        said: dict[str, Any] = (
            {"budgets": [self._budget_dict(budget) for budget in self.budgets]} if self.budgets else {}
        )
        return said | ({} if self.run is None else {"run": asdict(self.run) | {"run_bytes": self.run_bytes}})

    def _budget_dict(self, budget: Budget) -> dict[str, Any]:
        left = self.left(budget)
        weighed = {"match": self.match, "experts_bytes": self.experts_bytes, "left_bytes": left, "fits": left >= 0}
        return asdict(budget) | weighed


def budgets_for(texts: Sequence[str], skeleton: nn.Module) -> tuple[Budget, ...]:
    """Budgets in bytes; relative ones are of the dense feed-forward blocks of `skeleton`. RequestError for no size."""
    relative = any(text.strip().endswith("x") for text in texts)
    dense = dense_bytes(skeleton) if relative else 0
    return tuple(Budget(text, budget_bytes(text, dense)) for text in texts)


def run_for(skeleton: nn.Module, context: int | None, batch: int = 1) -> Run | None:
    """What `context` tokens take at run time; None where no context was asked for."""
    return None if context is None else Run(context, batch, cache_bytes(skeleton.config, context, batch))


def room_for(planned: Plan, budgets: tuple[Budget, ...], match: Accounting, run: Run | None) -> RecipeRoom:
    """Set a plan beside budgets."""
    experts = expert_bytes(planned.result)[f"{match}_bytes"]
    return RecipeRoom(
        match, experts, budgets, run, None if run is None else planned.result.resident_bytes + run.cache_bytes
    )
