"""The report of a run: one dictionary, and the same as Markdown and as a page that needs no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from mote_quant.memory.units import human_bytes
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


Table = tuple[str, list[str], list[list[str]]]


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """(title, header, rows) of everything worth a table."""
    roles = report["bytes"]["roles"]
    rows = [
        [role, f"{weight['parameters']:,}", f"{weight['bits']:.2f}", human_bytes(weight["stored_bytes"])]
        for role, weight in roles.items()
    ]
    total = sum(weight["parameters"] for weight in roles.values())
    rows.append(["total", f"{total:,}", "", human_bytes(report["bytes"]["stored_bytes"])])
    yield "What it weighs", ["role", "parameters", "bits each", "stored"], rows
    covered = [
        [row["target"], row["format"] or "(untouched)", f"{row['weights']:,}", *_before_after(row)]
        for row in report["coverage"]
    ]
    yield "What each rule covered", ["target", "format", "weights", "before", "after"], covered
    yield "What was done", ["step", "seconds", "figures"], [_step_row(note) for note in report["steps"]]


def _before_after(row: dict[str, Any]) -> list[str]:
    return [human_bytes(row["bytes_before"]), human_bytes(row["bytes_after"])]


def _step_row(note: dict[str, Any]) -> list[str]:
    figures = []
    if "preservation" in note:
        figures.append(f"preservation: outputs moved by {note['preservation']['relative']:.3g} (relative)")
    if note.get("curve"):
        figures.append(
            f"loss {note['curve'][0]['loss']:.4f} -> {note['curve'][-1]['loss']:.4f}, {note['tokens']:,} tokens"
        )
    if note.get("modules"):
        starved = [name for name, module in note["modules"].items() if module.get("tokens") == 0]
        figures.append(f"{len(note['modules'])} modules quantized, {len(starved)} without calibration tokens")
    return [note["step"], f"{note.get('seconds', 0):.1f}", "; ".join(figures)]


def render_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    parts = [f"# {report['recipe']}\n"]
    for title, header, rows in tables(report):
        lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page."""
    body = [f"<h1>{html.escape(report['recipe'])}</h1>"]
    for title, header, rows in tables(report):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        body.append(f"<h2>{html.escape(title)}</h2><table><tr>{head}</tr>{lines}</table>")
    return PAGE.format(title=html.escape(report["recipe"]), body="\n".join(body))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d8dee6; vertical-align: top; }}
img {{ max-width: 100%; }}
</style></head><body>
{body}
</body></html>
"""
