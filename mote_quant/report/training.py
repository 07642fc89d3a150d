"""What a `train` step saw while it ran: its charts, and what it has to warn of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from mote_quant.report.charts import line_chart, share_map
from mote_quant.report.figures import percent

Note = Mapping[str, Any]
Lines = dict[str, list[tuple[float, float]]]


def callouts(note: Note) -> list[list[str]]:
    """(where, what) for data that is short, steps undone, and layers with experts that hardly any token reached."""
    dead: dict[str, list[str]] = {}
    for found in note.get("dead_experts", []):
        dead.setdefault(str(found["layer"]), []).append(f"{found['expert']} (since step {found['step']})")
    text = "hardly any token reached expert {}: raise balance_loss, or take fewer experts"
    short = [["data", note["data"]["short"]]] if note.get("data", {}).get("short") else []
    undone = [[f"step {row['step']}", _undone(row)] for row in note.get("rollbacks", [])]
    return short + undone + [[layer, text.format(", ".join(experts))] for layer, experts in dead.items()]


def _undone(row: Note) -> str:
    spike = "a loss or gradient that is not finite" if row["loss"] is None else f"loss {row['loss']:.4g}"
    spike += "" if row["loss"] is None or row["usual"] is None else f" (the median before was {row['usual']:.4g})"
    return f"{spike}: back to step {row['back_to']}, without that step's data, rates x {row['rate']:.3g}"


def figures(note: Note) -> list[str]:
    """What was seen of the data, and what a search and a validation came to, in a few words."""
    told = list(_data(note.get("data", {})))
    search, validation = note.get("search"), note.get("validation")
    if search:
        tried = ", ".join(f"{rate}: {_loss(loss)}" for rate, loss in search["losses"].items())
        told.append(f"learning rate {search['learning_rate']:g}, the best of the validation losses {tried}")
    if own := note.get("learning_rates"):
        rates = ", ".join(f"{target} {given['rate']:g}" for target, given in own.items())
        told.append(f"learning rates of their own: {rates}")
    if validation:
        best, stopped = validation["best"], validation["stopped"]
        early = f", stopped after step {stopped}" if stopped else ""
        told.append(f"lowest validation loss {best['loss']:.4f} after step {best['step']}{early}")
    return told


def _data(seen: Note) -> Iterator[str]:
    """What a mix, packing and sorting came to."""
    if sources := seen.get("sources"):
        yield "samples " + ", ".join(f"{name}: {count:,}" for name, count in sources.items())
    if packed := seen.get("packed"):
        yield f"rows {percent(packed['fill'])} full, {packed['samples_a_row']:g} samples a row"
    if bucketed := seen.get("bucketed"):
        yield f"{percent(bucketed['padding'])} padding ({percent(bucketed['padding_unsorted'])} unsorted)"
    if bad := seen.get("bad_rows"):
        yield f"{bad:,} bad rows skipped"


def _loss(found: float | None) -> str:
    return "not finite" if found is None else f"{found:.4g}"


def charts(note: Note) -> list[str]:
    """SVG pictures of the note of a step; none where it saw nothing."""
    points, curve = note.get("figures", []), note.get("curve", [])
    drawn = [line_chart("loss", (_MIXED if note.get("distillation") else _LOSSES)(curve))]
    drawn += [line_chart(_title(title, note), lines(points or curve)) for title, lines in _CHARTS]
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
_RATE = "learning rate"
_LOSSES = _plain(loss="training", validation="validation")
_MIXED = _plain(loss="training (task and teacher)", validation="validation (task)")
_CHARTS: Sequence[tuple[str, Callable[[Sequence[Note]], Lines]]] = (
    ("KL to the teacher (nats)", _plain(kl="KL to the teacher (nats)")),
    (_RATE, _plain(learning_rate=_RATE)),
    ("gradient norm before clipping", _nested("gradients")),
    ("balance of experts (1 is even)", _nested("routing", "balance")),
    ("routing entropy (nats)", _nested("routing", "entropy")),
    ("share of weights that are zero", _nested("codes", "zeros", _LAYERS)),
    ("share of codes changed since the last point", _nested("codes", "flips", _LAYERS)),
    ("tokens a second, padding included", _plain(tokens_per_second="tokens a second, padding included")),
)


def _title(title: str, note: Note) -> str:
    """Whose rate is drawn, where some have their own."""
    own = note.get("learning_rates")
    return f"{title} of all but {', '.join(own)}" if own and title == _RATE else title


def _loads(points: Sequence[Note]) -> Iterator[str]:
    """The load of every expert over the last fifth of the points."""
    last = [point["routing"] for point in points[-max(1, len(points) // 5) :] if point.get("routing")]
    if not last:
        return
    rows = {
        _short(layer): [fmean(loads) for loads in zip(*(r[layer]["load"] for r in last if layer in r), strict=True)]
        for layer in last[-1]
    }
    even = 100 / max(1, len(next(iter(rows.values()))))
    yield share_map(f"load of experts at the end, in % ({even:.3g} is even)", rows, "expert")
