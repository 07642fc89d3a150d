"""The report of a sweep, made of its `results.json` alone: statistics, fronts, headlines, tables, picture, page."""

from mote_quant.sweeps.report.fronts import best_that_fit, fronts
from mote_quant.sweeps.report.headline import Headline, caveats, headlines
from mote_quant.sweeps.report.statistics import Contender, Difference, Spread, contenders, paired
from mote_quant.sweeps.report.tables import Table, brief_tables, contender_table, tables
from mote_quant.sweeps.report.text import markdown, render_markdown
from mote_quant.sweeps.report.write import write_report

__all__ = [
    "Contender",
    "Difference",
    "Headline",
    "Spread",
    "Table",
    "best_that_fit",
    "brief_tables",
    "caveats",
    "contender_table",
    "contenders",
    "fronts",
    "headlines",
    "markdown",
    "paired",
    "render_markdown",
    "tables",
    "write_report",
]
