"""The outcomes of a sweep as the one document that every table, picture and page is made of (`results.json`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mote_quant.recipe import dump
from mote_quant.recipe.near import did_you_mean
from mote_quant.sweeps.budgets import Selection
from mote_quant.sweeps.candidates import Candidate, with_run
from mote_quant.sweeps.engine import Done, Failure, Outcome
from mote_quant.sweeps.graph import BASE, best_rate, grid_name, measure_name, quantize_name, train_name
from mote_quant.sweeps.schema import Sweep

Outcomes = Mapping[str, Outcome]
_KEPT_BACK = ("seconds", "commit", "lost_tasks")


def build_document(
    sweep: Sweep, candidates: Sequence[Candidate], selection: Selection, outcomes: Outcomes, root: Path
) -> dict[str, Any]:
    """`candidates` are those that take part; outcomes may hold failures."""
    points = list(_points(sweep, candidates, selection, outcomes, root))
    return {
        "sweep": _described(sweep, selection),
        "points": points,
        "grid": list(_grid(sweep, candidates, outcomes)),
        "misfits": selection.misfits,
        "failures": [
            *_impossible(selection),
            *_alike(_failures(outcomes)),
            *_alike(_lost_tasks(outcomes)),
            *_unscored(sweep, points),
        ],
    }


def _unscored(sweep: Sweep, points: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    if points and not any(sweep.score in point for point in points):
        numbers = sorted(key for key, value in points[0].items() if isinstance(value, float))
        error = f"no contender has it{did_you_mean(sweep.score, numbers)}; measured are {', '.join(numbers)}"
        yield {"cell": f"score {sweep.score}", "contender": None, "seed": None, "error": error}


def _alike(failures: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for all cells that failed in the same words: a missing column is one mistake, not thirty."""
    rows: dict[str, dict[str, Any]] = {}
    for failure in failures:
        row = rows.setdefault(failure["error"], {**failure, "cells": 0})
        row["cells"] += 1
    return list(rows.values())


def _lost_tasks(outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    for name, outcome in outcomes.items():
        for task, error in (outcome.result.get("lost_tasks", {}) if isinstance(outcome, Done) else {}).items():
            yield {"cell": f"task {task}, {name}", "contender": None, "seed": None, "error": error, "lost": 0}


def _described(sweep: Sweep, selection: Selection) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "description": sweep.description,
        "base": sweep.base.model if sweep.base.recipe is None else f"{sweep.base.model} ({sweep.base.recipe})",
        "data": sweep.data,
        "heldout": sweep.heldout,
        "tasks": sweep.tasks,
        "seeds": sweep.seeds,
        "score": sweep.score,
        "higher_is_better": sweep.rising,
        "ours": sweep.ours,
        "controls": sweep.controls,
        "match": sweep.match,
        "budgets": [{"text": budget.text, "bytes": budget.bytes} for budget in selection.budgets],
        "learning_rates": sweep.learning_rates,
        "train": sweep.train,
    }


def _points(
    sweep: Sweep, candidates: Sequence[Candidate], selection: Selection, outcomes: Outcomes, root: Path
) -> Iterator[dict[str, Any]]:
    for candidate in candidates:
        rate = _rate(sweep, candidate, outcomes)
        for seed in sweep.seeds:
            packed = outcomes.get(quantize_name(candidate.name, seed))
            measured = outcomes.get(measure_name(candidate.name, seed))
            if isinstance(measured, Done) and isinstance(packed, Done):
                trained = outcomes[BASE if rate is None else train_name(candidate.trained, seed)]
                recipe = with_run(candidate.recipe, seed, rate) if rate is not None else candidate.recipe
                yield {
                    "contender": candidate.name,
                    "family": candidate.trained,
                    "group": candidate.group,
                    "seed": seed,
                    "learning_rate": rate,
                    **_figures(trained, "train_seconds", "tokens_trained"),
                    **_figures(packed, "calibration_tokens_min", "calibration_tokens_mean"),
                    **{key: value for key, value in measured.result.items() if key not in _KEPT_BACK},
                    "fits": selection.fits[candidate.name],
                    "model": _relative(packed.model, root),
                    "recipe": dump(recipe),
                }


def _rate(sweep: Sweep, candidate: Candidate, outcomes: Outcomes) -> float | None:
    if candidate.training is None:
        return None
    return best_rate({rate: outcomes[grid_name(candidate.trained, rate)] for rate in sweep.learning_rates})


def _figures(outcome: Outcome, *names: str) -> dict[str, Any]:
    result = outcome.result if isinstance(outcome, Done) else {}
    return {name: result[name] for name in names if name in result}


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _grid(sweep: Sweep, candidates: Sequence[Candidate], outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    for candidate in {c.trained: c for c in candidates if c.training is not None}.values():
        chosen = _rate(sweep, candidate, outcomes)
        for rate in sweep.learning_rates:
            outcome = outcomes[grid_name(candidate.trained, rate)]
            loss = outcome.result["validation_loss"] if isinstance(outcome, Done) else None
            yield {
                "family": candidate.trained,
                "learning_rate": rate,
                "validation": loss,
                "chosen": rate == chosen,
                "edge": rate == chosen and len(sweep.learning_rates) > 1 and rate in _ends(sweep.learning_rates),
            }


def _ends(rates: Sequence[float]) -> tuple[float, float]:
    return min(rates), max(rates)


def _impossible(selection: Selection) -> Iterator[dict[str, Any]]:
    for found in selection.impossible:
        yield {
            "cell": f"plan {found['contender']}",
            "contender": found["contender"],
            "seed": None,
            "error": found["error"],
        }
    for budget, nearest in selection.unmet.items():
        yield {"cell": f"budget {budget}", "contender": None, "seed": None, "error": nearest}


def _failures(outcomes: Outcomes) -> Iterator[dict[str, Any]]:
    """What went wrong by itself; what only could not follow is counted with it."""
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failure) and not outcome.cause:
            verb, _, rest = name.partition(" ")
            contender, _, where = rest.partition(", ")
            seed = int(where.removeprefix("seed ")) if where.startswith("seed ") else None
            lost = sum(isinstance(other, Failure) and other.cause == name for other in outcomes.values())
            yield {
                "cell": name,
                "contender": contender or verb,
                "seed": seed,
                "error": outcome.error,
                "lost": lost,
            }
