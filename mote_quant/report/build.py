"""What a run has to say of itself, as one dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mote_quant.planning import Plan


def build_report(
    plan: Plan, notes: Sequence[dict[str, Any]], sizes: dict[str, int], made: dict[str, Any]
) -> dict[str, Any]:
    """`DIR/run/report.json`: steps, preservation, bytes, metrics, coverage, provenance."""
    preservation = next((note["preservation"] for note in notes if "preservation" in note), None)
    weights = plan.result.to_json()
    return {
        "recipe": plan.recipe.name,
        "steps": list(notes),
        "preservation": preservation,
        "bytes": {**weights, "dense_stored_bytes": plan.dense.stored_bytes, **sizes},
        "metrics": _metrics(notes),
        "coverage": [asdict(row) for row in plan.coverage],
        "provenance": made,
    }


def _metrics(notes: Sequence[dict[str, Any]]) -> dict[str, float]:
    trained = [note for note in notes if note["step"] == "train"]
    metrics: dict[str, float] = {"train_seconds": sum(note["seconds"] for note in trained)}
    curves = [note["curve"] for note in trained if note.get("curve")]
    if curves:
        metrics |= {f"train_{key}": value for key, value in curves[-1][-1].items() if key != "step"}
    metrics["tokens_seen"] = sum(note["tokens"] for note in trained)
    return metrics
