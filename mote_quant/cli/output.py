"""What commands print on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

Table = tuple[str, list[str], list[list[str]]]
"""Title, header, rows."""
_PIPED_WIDTH = 140
_HOUR = 3600
_TIMES = ((24 * _HOUR, "days"), (_HOUR, "h"), (60, "min"), (1, "s"))


def print_json(value: Any) -> None:
    """One JSON object, indented."""
    typer.echo(json.dumps(value, indent=2))


def print_tables(tables: Iterable[Table]) -> None:
    """One table after the other; cells that look like numbers are right-aligned by column."""
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    for title, header, rows in tables:
        if rows:
            console.print(_table(title, header, rows), "")


def print_lines(lines: Iterable[str]) -> None:
    """Lines as they are, never wrapped."""
    for line in lines:
        typer.echo(line)


def human_time(seconds: float) -> str:
    """Seconds for people: `under a second`, `42 s`, `7 min`, `3.5 h`, `12 days`."""
    if seconds < 1:
        return "under a second"
    size, unit = next(((size, unit) for size, unit in _TIMES if seconds >= size), _TIMES[-1])
    count = seconds / size
    return f"{count:.1f} {unit}" if count < 9.95 and size >= _HOUR else f"{count:.0f} {unit}"


def _table(title: str, header: list[str], rows: list[list[str]]) -> RichTable:
    table = RichTable(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, name in enumerate(header):
        numeric = all(_is_figure(row[index]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", header_style="dim")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _is_figure(cell: str) -> bool:
    return not cell or cell[0].isdigit() or (cell[0] == "-" and cell[1:2].isdigit())
