"""The front as a PNG: bytes against the score, the mean of each contender with its spread over seeds."""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mote_quant.errors import MissingExtraError
from mote_quant.memory.units import human_bytes
from mote_quant.sweeps.report.fronts import fronts, scored
from mote_quant.sweeps.report.labels import Place, nearest, place_labels
from mote_quant.sweeps.report.metrics import Kind, kind_of, label
from mote_quant.sweeps.report.palette import LIGHT, styles
from mote_quant.sweeps.report.statistics import Contender, Document

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "wedge": "v", "cross": "X", "plus": "P"}
_INK, _FAINT = "#1d2430", "#8b95a3"
_WHOLE = re.compile(r"\.0+ ")
_GAP = 13.0
"""Pixels between a marker's middle and its name."""


def picture(document: Document, accounting: str | None = None) -> bytes:
    """The picture as PNG, sizes in `accounting` (the sweep's own by default). MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'mote-quant[demo]'") from error
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw(axes, canvas, document, accounting or document["sweep"]["match"])
    data = io.BytesIO()
    canvas.print_png(data)
    return data.getvalue()


def _draw(axes: Any, canvas: Any, document: Document, accounting: str) -> None:
    sweep = document["sweep"]
    kind = kind_of(sweep["score"], sweep)
    shown = [contender for contender, _ in scored(document)]
    _frame(axes, document, accounting, kind)
    _budgets(axes, document, accounting)
    steps = _front(axes, fronts(document)[accounting], accounting, sweep["score"], kind)
    marked = [(contender.name, _marked(axes, document, contender, accounting, kind)) for contender in shown]
    _legend(axes, styles(document))
    canvas.draw()
    _label(axes, canvas, marked, steps)


def _frame(axes: Any, document: Document, accounting: str, kind: Kind) -> None:
    sweep = document["sweep"]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: _WHOLE.sub(" ", human_bytes(round(value))))
    axes.margins(x=0.14, y=0.14)
    axes.set_xlabel(f"feed-forward experts, {accounting} bytes", color=_INK)
    better = "higher" if kind.higher_is_better else "lower"
    unit = f"{kind.unit}, " if kind.unit else ""
    axes.set_ylabel(f"{label(sweep['score'])} ({unit}{better} is better)", color=_INK)
    axes.set_title(sweep["name"], loc="left", fontweight="bold", color=_INK, parse_math=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=_INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_FAINT)


def _budgets(axes: Any, document: Document, accounting: str) -> None:
    """Budgets are bytes of the accounting the sweep matches: in another they would mislead."""
    if accounting != document["sweep"]["match"]:
        return
    for budget in document["sweep"].get("budgets") or []:
        axes.axvline(budget["bytes"], color=_FAINT, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        axes.annotate(
            budget["text"], (budget["bytes"], 1), xycoords=("data", "axes fraction"), xytext=(4, -4),
            textcoords="offset points", va="top", fontsize=8, color=_FAINT, parse_math=False,
        )  # fmt: skip


def _front(axes: Any, best: Sequence[Contender], accounting: str, score: str, kind: Kind) -> list[tuple[Place, Place]]:
    """Steps: with so many bytes, this is what can be had. Returns the corners of each level stretch."""
    sizes = [contender.size(accounting) for contender in best]
    values = [kind.scale * contender.metrics[score].mean for contender in best]
    axes.plot(sizes, values, drawstyle="steps-post", color=_FAINT, alpha=0.5, linewidth=1.6, zorder=1)
    return [((sizes[at], values[at]), (sizes[at + 1], values[at])) for at in range(len(best) - 1)]


def _marked(axes: Any, document: Document, contender: Contender, accounting: str, kind: Kind) -> tuple[float, float]:
    """Draw one contender; returns its place."""
    found = contender.metrics[document["sweep"]["score"]]
    colour, shape = styles(document)[contender.group]
    place = (contender.size(accounting), kind.scale * found.mean)
    axes.errorbar(
        *place, yerr=kind.scale * found.sd if found.sd else None, fmt=_MARKERS[shape], color=LIGHT[colour], ms=7,
        mec="white", mew=0.8, elinewidth=1.2, capsize=2.5, zorder=3, label=contender.group,
    )  # fmt: skip
    return place


def _legend(axes: Any, looks: Mapping[str, tuple[int, str]]) -> None:
    """Each group once, below the plot so that it hides nothing."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    groups = [group for group in looks if group in handles]
    axes.figure.legend(
        [handles[group] for group in groups], groups, loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )


def _label(
    axes: Any, canvas: Any, names: Sequence[tuple[str, Place]], stretches: Sequence[tuple[Place, Place]]
) -> None:
    """Names beside their markers, with a thin line to those that had to move away."""
    style = {"fontsize": 8.5, "color": _INK, "zorder": 4, "parse_math": False, "textcoords": "offset pixels"}
    leader = {"arrowstyle": "-", "color": _FAINT, "lw": 0.6, "shrinkA": 0, "shrinkB": 4}
    renderer, pixels = canvas.get_renderer(), axes.transData.transform
    notes = [axes.annotate(name, place, xytext=(0, 0), **style) for name, place in names]
    extents = [(box.width, box.height) for box in (note.get_window_extent(renderer) for note in notes)]
    anchors = [tuple(pixels(place)) for _, place in names]
    lines = [(*(pixels(one) - 2), *(pixels(other) + 2)) for one, other in stretches]
    boxes = place_labels(anchors, extents, axes.get_window_extent(renderer).extents, _GAP, lines)
    for note, (name, place), (x, y), box in zip(notes, names, anchors, boxes, strict=True):
        note.remove()
        moved = math.dist(nearest((x, y), box), (x, y)) > 2 * _GAP
        axes.annotate(name, place, xytext=(box[0] - x, box[1] - y), arrowprops=leader if moved else None, **style)
