"""What a `train` step saw while it ran: its charts, and what it has to warn of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from mote_quant.report.charts import line_chart, shade_map

Note = Mapping[str, Any]
Lines = dict[str, list[tuple[float, float]]]


def callouts(note: Note) -> list[list[str]]:
    """(where, what) for steps that were undone, and for layers with experts that hardly any token reached any more."""
    dead: dict[str, list[str]] = {}
    for found in note.get("dead_experts", []):
        dead.setdefault(str(found["layer"]), []).append(f"{found['expert']} (since step {found['step']})")
    text = "hardly any token reached expert {}: raise balance_loss, or take fewer experts"
    undone = [[f"step {row['step']}", _undone(row)] for row in note.get("rollbacks", [])]
    return undone + [[layer, text.format(", ".join(experts))] for layer, experts in dead.items()]


def _undone(row: Note) -> str:
    spike = "a loss or gradient that is not finite" if row["loss"] is None else f"loss {row['loss']:.4g}"
    return f"{spike}: back to step {row['back_to']}, without that step's data, rates x {row['rate']:.3g}"


def figures(note: Note) -> list[str]:
    """What a search and a validation came to, in a few words."""
    search, validation = note.get("search"), note.get("validation")
    told = [f"learning rate {search['learning_rate']:g} of {', '.join(search['losses'])}"] if search else []
    if validation:
        best, stopped = validation["best"], validation["stopped"]
        early = f", stopped after step {stopped}" if stopped else ""
        told.append(f"lowest validation loss {best['loss']:.4f} after step {best['step']}{early}")
    return told


def charts(note: Note) -> list[str]:
    """SVG pictures of the note of a step; none where it saw nothing."""
    points = note.get("figures", [])
    drawn = [line_chart("loss", _LOSSES(note.get("curve", [])))]
    drawn += [line_chart(title, lines(points)) for title, lines in _CHARTS]
    return [chart for chart in [*drawn, *_loads(points)] if chart]


def _plain(**names: str) -> Callable[[Sequence[Note]], Lines]:
    def lines(points: Sequence[Note]) -> Lines:
        return {shown: [(p["step"], p[key]) for p in points if p.get(key) is not None] for key, shown in names.items()}

    return lines


def _nested(group: str, key: str = "", only: str = "") -> Callable[[Sequence[Note]], Lines]:
    """A line for each name within `group`: its value, or the one called `key` there."""

    def lines(points: Sequence[Note]) -> Lines:
        found: Lines = {}
        for point in points:
            for name, value in point.get(group, {}).items():
                number = value.get(key) if key else value
                if number is not None and re.search(only, name):
                    found.setdefault(_short(name), []).append((point["step"], number))
        return found

    return lines


def _short(name: str) -> str:
    """`layer 3` of `model.layers.3`."""
    numbered = re.search(r"\.(\d+)$", name)
    return f"layer {numbered[1]}" if numbered else name


_LAYERS = r"\.\d+$"
_LOSSES = _plain(loss="training", validation="validation", kl="KL to the teacher")
_CHARTS: Sequence[tuple[str, Callable[[Sequence[Note]], Lines]]] = (
    ("learning rate", _plain(learning_rate="learning rate")),
    ("gradient norm before clipping", _nested("gradients")),
    ("balance of experts (1 is even)", _nested("routing", "balance")),
    ("routing entropy (nats)", _nested("routing", "entropy")),
    ("share of weights that are zero", _nested("codes", "zeros", _LAYERS)),
    ("share of codes changed since the last point", _nested("codes", "flips", _LAYERS)),
    ("tokens a second", _plain(tokens_per_second="tokens a second")),
)


def _loads(points: Sequence[Note]) -> Iterator[str]:
    """The load of every expert over the last fifth of the points."""
    last = [point["routing"] for point in points[-max(1, len(points) // 5) :] if point.get("routing")]
    if not last:
        return
    rows = {
        _short(layer): [fmean(loads) for loads in zip(*(r[layer]["load"] for r in last if layer in r), strict=True)]
        for layer in last[-1]
    }
    even = 1 / max(1, len(next(iter(rows.values()))))
    yield shade_map("load of experts at the end (a row a layer)", rows, even)
