"""The memory-accuracy picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mote_quant.errors import MissingExtraError
from mote_quant.evaluate.pareto import front

Point = dict[str, Any]
KIB = 1024


def draw_pareto(points: Sequence[Point], path: Path, *, size: str = "stored_bytes", title: str) -> None:
    """Write a PNG: expert KiB (log scale) against accuracy in percent, the non-dominated points joined.

    Each point has `contender`, `accuracy` and the byte count named by `size`. MissingExtraError without matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("drawing needs matplotlib: pip install 'mote-quant[demo]'") from error
    figure, axes = pyplot.subplots(figsize=(9, 5.5), dpi=120)
    best = front(points, lambda p: p[size], lambda p: p["accuracy"])
    axes.plot(
        [p[size] / KIB for p in best], [100 * p["accuracy"] for p in best], color="#c4ccd6", linewidth=2, zorder=1
    )
    for point in points:
        ours = point["contender"].startswith("mote")
        place = (point[size] / KIB, 100 * point["accuracy"])
        axes.scatter(*place, s=60, color="#c2410c" if ours else "#1d4ed8", zorder=2)
        # Ours are labelled on the left: at equal bytes they stand next to what they are compared with.
        beside = {"xytext": (-7, 6), "ha": "right"} if ours else {"xytext": (7, 6), "ha": "left"}
        axes.annotate(point["contender"], place, textcoords="offset points", **beside)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.18, y=0.12)
    axes.set_xlabel("feed-forward experts on disk, scales included (KiB)")
    axes.set_ylabel("accuracy on unseen images (%)")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
