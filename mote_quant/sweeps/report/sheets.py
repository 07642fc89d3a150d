"""The CSV files: `points.csv` for whoever wants to check us, `summary.csv` for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mote_quant.sweeps.report.statistics import IDENTITY, SIZES, Document, contenders

_RESULTS = ("accuracy", "loss", "perplexity", "bits_per_byte")


def points_csv(document: Document) -> str:
    """One row a point: every key with a scalar value but the recipe, empty where a point has none."""
    points = document["points"]
    return _written(_columns(points), points)


def summary_csv(document: Document) -> str:
    """One row a contender: its sizes, then mean, standard deviation (n - 1) and count of every number measured."""
    found = contenders(document)
    metrics = [key for key in _columns(document["points"]) if any(key in contender.metrics for contender in found)]
    header = ["contender", "family", "group", *SIZES]
    header += [f"{key}_{part}" for key in metrics for part in ("mean", "sd", "n")]
    rows = []
    for contender in found:
        row = {key: contender.points[0].get(key) for key in header[: 3 + len(SIZES)]}
        for key, one in contender.metrics.items():
            row |= {f"{key}_mean": one.mean, f"{key}_sd": one.sd, f"{key}_n": one.n}
        rows.append(row)
    return _written(header, rows)


def _columns(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Who, what came out, what it weighs, then the rest by name: the same order whatever the points' own."""
    scalar = {key for point in points for key, value in point.items() if _is_scalar(value) and key != "recipe"}
    tasks = sorted(key for key in scalar if "." in key)
    known = [key for key in (*IDENTITY, *_RESULTS, *tasks, *SIZES) if key in scalar]
    return known + sorted(scalar.difference(known))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _written(header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
