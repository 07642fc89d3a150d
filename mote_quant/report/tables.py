"""The tables of a report: short ones for everybody, long ones for those who look closer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mote_quant.memory.units import human_bytes
from mote_quant.report import quantized, training
from mote_quant.report.figures import Table


def tables(report: dict[str, Any]) -> Iterator[Table]:
    """(title, header, rows) of everything worth a look, what did not go as asked first."""
    steps = report["steps"]
    callouts = [row for note in steps for row in (*training.callouts(note), *quantized.callouts(note))]
    if callouts:
        yield "Not as asked", ["where", "what"], callouts
    yield "What it weighs", ["role", "parameters", "bits each", "stored"], _weights(report["bytes"])
    covered = [
        [row["target"], row["format"] or "(untouched)", f"{row['weights']:,}", *_before_after(row)]
        for row in report["coverage"]
    ]
    yield "What each rule covered", ["target", "format", "weights", "before", "after"], covered
    yield "What was done", ["step", "seconds", "figures"], [_step_row(note) for note in steps]
    for note in steps:
        yield from quantized.summaries(note)


def details(report: dict[str, Any]) -> Iterator[Table]:
    """(title, header, rows) with a row for every module, unit or the like."""
    for note in report["steps"]:
        yield from quantized.details(note)


def _weights(sizes: dict[str, Any]) -> list[list[str]]:
    roles = sizes["roles"]
    rows = [
        [role, f"{weight['parameters']:,}", f"{weight['bits']:.2f}", human_bytes(weight["stored_bytes"])]
        for role, weight in roles.items()
    ]
    total = sum(weight["parameters"] for weight in roles.values())
    return [*rows, ["total", f"{total:,}", "", human_bytes(sizes["stored_bytes"])]]


def _before_after(row: dict[str, Any]) -> list[str]:
    return [human_bytes(row["bytes_before"]), human_bytes(row["bytes_after"])]


def _step_row(note: dict[str, Any]) -> list[str]:
    figures = []
    if "preservation" in note:
        figures.append(f"preservation: outputs moved by {note['preservation']['relative']:.3g} (relative)")
    if note.get("curve"):
        figures.append(f"loss {note['curve'][0]['loss']:.4f} -> {note['curve'][-1]['loss']:.4f}")
        figures[-1] += f", {note['tokens']:,} tokens (padding included)"
    if note.get("distillation"):
        figures.append(f"KL to the teacher {note['curve'][0]['kl']:.4f} -> {note['distillation']['kl']:.4f}")
    if note.get("devices"):
        figures.append(f"{note['devices']['processes']} processes, {note['devices']['sharding']}")
    figures += training.figures(note)
    if note.get("modules"):
        starved = [name for name, module in note["modules"].items() if module.get("tokens") == 0]
        figures.append(f"{len(note['modules'])} modules quantized, {len(starved)} without calibration tokens")
    return [note["step"], f"{note.get('seconds', 0):.1f}", "; ".join(figures)]
