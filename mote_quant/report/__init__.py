"""The report of a run: one dictionary, and the same as Markdown and as a page that needs no network."""

from mote_quant.report.build import build_report
from mote_quant.report.render import PAGE, render_html, render_markdown
from mote_quant.report.tables import details, tables

__all__ = ["PAGE", "build_report", "details", "render_html", "render_markdown", "tables"]
