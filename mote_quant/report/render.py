"""A report as Markdown and as HTML."""

from __future__ import annotations

import html
from typing import Any

from mote_quant.report.figures import Table
from mote_quant.report.tables import details, tables
from mote_quant.report.training import charts


def render_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    parts = [f"# {report['recipe']}\n", *map(_markdown, tables(report)), *map(_markdown, details(report))]
    return "\n".join(parts)


def _markdown(table: Table) -> str:
    title, header, rows = table
    lines = ["| " + " | ".join(map(_cell, cells)) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page; long tables are folded."""
    title = html.escape(report["recipe"])
    body = [f"<h1>{title}</h1>"]
    body += [f"<h2>{html.escape(table[0])}</h2>{_html(table)}" for table in tables(report)]
    for note in report["steps"]:
        if drawn := charts(note):
            body.append(f'<h2>How the training went</h2><div class="charts">{"".join(drawn)}</div>')
    body += [
        f"<details><summary>{html.escape(table[0])} ({len(table[2]):,})</summary>{_html(table)}</details>"
        for table in details(report)
    ]
    return PAGE.format(title=title, body="\n".join(body))


def _html(table: Table) -> str:
    _, header, rows = table
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }}
h1 {{ font-size: 1.5rem; }} h2, summary {{ font-size: 1.1rem; font-weight: bold; margin-top: 2rem; }}
summary {{ cursor: pointer; }} details {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d8dee6; vertical-align: top; }}
img {{ max-width: 100%; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: 1.2rem 1.5rem; }}
.charts svg {{ width: 100%; height: auto; }}
</style></head><body>
{body}
</body></html>
"""
