"""The demo's table, for a terminal, for Markdown and as one page that needs no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mote_quant.memory.units import human_bytes
from mote_quant.report import PAGE

Point = dict[str, Any]
HEADER = ["contender", "accuracy", "answer loss", "experts: paper", "experts: stored", "experts: resident", "training"]


def rows(points: Sequence[Point]) -> list[list[str]]:
    """One row of text a contender, under `HEADER`."""
    return [
        [
            point["contender"],
            f"{100 * point['accuracy']:.1f} %",
            f"{point['loss']:.3f}",
            human_bytes(point["paper_bytes"]),
            human_bytes(point["stored_bytes"]),
            human_bytes(point["resident_bytes"]),
            f"{point['train_seconds']:.0f} s",
        ]
        for point in points
    ]


def markdown(points: Sequence[Point]) -> str:
    """The table for a README."""
    lines = [HEADER, ["---"] * len(HEADER), *rows(points)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def render_page(points: Sequence[Point], picture: Path) -> str:
    """Table and picture in one HTML file."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEADER)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows(points))
    image = base64.b64encode(picture.read_bytes()).decode()
    body = (
        "<h1>Mixture of Ternary Experts on digits-vqa</h1>"
        "<p>Every model was saved, reloaded in a fresh process, and asked about images it had never seen. "
        f"Seed {points[0]['seed']}. Byte counts are of the feed-forward experts: <b>paper</b> leaves scales out and "
        "counts a ternary weight at 2 bits; <b>stored</b> is what lies on disk; <b>resident</b> is what is held at run "
        "time.</p>"
        f"<table><tr>{head}</tr>{lines}</table>"
        f'<h2>Memory against accuracy</h2><img alt="Pareto front" src="data:image/png;base64,{image}">'
    )
    return PAGE.format(title="mote-quant demo", body=body)
