"""The roofline: operations a second over operations per byte, kernels beside what the machine can do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eval.benchmarks.kernels import OURS, peers
from eval.benchmarks.matmul import BF16, MATMUL
from eval.benchmarks.rows import Row
from eval.benchmarks.scale import Shape

Point = tuple[float, float, int]
"""Operations a byte, Gop/s, tokens."""
_COLORS = ("#c1121f", "#ff7f11", "#7b2cbf", "#0353a4")
_MUTED = ("#8d99ae", "#6b9080", "#b5838d", "#a98467", "#7f7f7f", "#5fa8d3", "#94a93d", "#c9a227", "#b8b8b8", "#52796f")
_MARKERS = "sD^vP*X<>h"
_ROOFS = {"int8": "-", "bf16": "--"}


def draw(rows: Sequence[Row], machine: Mapping[str, Any], shape: Shape, path: Path) -> None:
    """A PNG of every kernel's product with a weight of `shape`, by tokens; ours in colour."""
    curves = _curves([row for row in rows if row.id == MATMUL and row.shape == shape])
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots()
    _roofs(axes, machine, curves)
    ours = [kernel.name for kernel in OURS if kernel.name in curves]
    others = [name for name in curves if name not in ours]
    for index, name in enumerate(others):
        color, marker = _MUTED[index % len(_MUTED)], _MARKERS[index % len(_MARKERS)]
        _curve(axes, curves[name], name, color=color, marker=marker, linewidth=0.9)
    for name, color in zip(ours, _COLORS, strict=False):
        _curve(axes, curves[name], f"ours: {name}", color=color, marker="o", linewidth=2.2)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations per byte (weights as stored, input, output)",
        ylabel="Gop/s, one thread",
    )
    tokens = ", ".join(str(point[2]) for point in next(iter(curves.values()), []))
    axes.set_title(f"{shape[0]}x{shape[1]}, {tokens} tokens from left to right: {machine['cpu']}")
    axes.grid(which="major", alpha=0.25)
    if curves:
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def _curves(rows: Sequence[Row]) -> dict[str, list[Point]]:
    bits = {kernel.name: kernel.bits for kernel in (*OURS, *peers())}
    curves: dict[str, list[Point]] = {}
    for row in rows:
        curves.setdefault(row.ours, []).append(_point(row, row.ours_s or 0.0, bits[row.ours]))
    first = next(iter(curves), None)
    bf16 = [_point(row, row.peer_s or 0.0, bits[BF16]) for row in rows if row.ours == first]
    return {name: sorted(points) for name, points in (curves | ({BF16: bf16} if bf16 else {})).items()}


def _point(row: Row, seconds: float, bits: float) -> Point:
    (rows, columns), tokens = row.shape, row.tokens or 1
    operations = 2 * rows * columns * tokens
    moved = rows * columns * bits / 8 + 2 * tokens * (rows + columns)
    return operations / moved, operations / seconds / 1e9, tokens


def _roofs(axes: Any, machine: Mapping[str, Any], curves: Mapping[str, list[Point]]) -> None:
    read = machine["read_gb_per_s"]["1"]
    ends = [point[0] for points in curves.values() for point in points] or [1.0]
    left, right = min(ends) / 2, max(ends) * 2
    for kind, peak in _peaks(machine):
        ridge = peak / read
        axes.plot([ridge, right], [peak, peak], color="black", linestyle=_ROOFS[kind], linewidth=1.2)
        axes.annotate(f"{kind} dot products: {peak:.0f} Gop/s", (ridge * 1.1, peak), va="bottom", fontsize=9)
    top = max((peak for _, peak in _peaks(machine)), default=read * right)
    axes.plot([left, top / read], [left * read, top], color="black", linewidth=1.2)
    middle = math.sqrt(left * top / read)
    beside: dict[str, Any] = {"xytext": (-6, 2), "textcoords": "offset points", "ha": "right", "fontsize": 9}
    axes.annotate(f"memory: {read:.1f} GB/s", (middle, middle * read), **beside)


def _peaks(machine: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for kind in _ROOFS:
        peak = machine[f"{kind}_peak_gop_per_s"]
        if peak is not None:
            yield kind, peak


def _curve(axes: Any, points: Sequence[Point], label: str, **style: Any) -> None:
    axes.plot([point[0] for point in points], [point[1] for point in points], label=label, markersize=5, **style)
