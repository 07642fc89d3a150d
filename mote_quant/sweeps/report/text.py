"""A sweep as Markdown: headlines first, then the fronts and every table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mote_quant.sweeps.report.fronts import fronts
from mote_quant.sweeps.report.headline import caveats, headlines
from mote_quant.sweeps.report.statistics import Document
from mote_quant.sweeps.report.tables import Table, tables


def render_markdown(document: Document, ours: str | None = None) -> str:
    """The report for people, in Markdown."""
    return "\n".join(_parts(document, ours))


def markdown(table: Table) -> str:
    """A table as Markdown, without its title."""
    lines = (table.header, ["---"] * len(table.header), *table.rows)
    return "".join("| " + " | ".join(map(_cell, cells)) + " |\n" for cells in lines)


def _cell(text: str) -> str:
    """Nothing in a cell may end it."""
    return _escaped(text).replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _escaped(text: str) -> str:
    """Names and errors are text, never tags."""
    return text.replace("\\", "\\\\").replace("<", "&lt;")


def facts(document: Document) -> Iterator[tuple[str, str]]:
    """What was held equal, as (name, value) pairs."""
    sweep = document["sweep"]
    for key in ("base", "data", "heldout", "tasks", "seeds", "score", "match", "learning_rates"):
        if sweep.get(key):
            yield key.replace("_", " "), _listed(sweep[key])
    if sweep.get("budgets"):
        yield "budgets", ", ".join(budget["text"] for budget in sweep["budgets"])
    for key, value in (sweep.get("train") or {}).items():
        yield str(key).replace("_", " "), _listed(value)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _parts(document: Document, ours: str | None) -> Iterator[str]:
    sweep = document["sweep"]
    yield f"# {sweep['name']}\n"
    if sweep.get("description"):
        yield f"{sweep['description']}\n"
    yield "".join(f"- {_escaped(line.text)}\n" for line in headlines(document, ours)) or "Nothing to compare yet.\n"
    yield from (f"{note}\n" for note in caveats(document, ours))
    yield "Byte counts are of the feed-forward experts.\n"
    yield "".join(f"- {name}: {value}\n" for name, value in facts(document))
    yield "## Fronts\n"
    best = fronts(document).items()
    yield "".join(f"- {name}: {_escaped(', '.join(c.name for c in found)) or 'nobody'}\n" for name, found in best)
    for table in tables(document):
        yield f"## {table.title}\n"
        yield markdown(table)
