"""The report folder: the document, the sheets, the text, the picture and the page."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from mote_quant.errors import MissingExtraError, SaveError
from mote_quant.hf.integrity import write_atomic
from mote_quant.sweeps.report.finite import finite
from mote_quant.sweeps.report.page import render_page
from mote_quant.sweeps.report.picture import picture
from mote_quant.sweeps.report.sheets import points_csv, summary_csv
from mote_quant.sweeps.report.statistics import Document
from mote_quant.sweeps.report.text import render_markdown

_log = logging.getLogger(__name__)


def write_report(document: Document, folder: Path) -> None:
    """Write results.json, points.csv, summary.csv, report.md, pareto.png and index.html, each whole or not at all.

    The picture is left out, with a warning, where matplotlib is missing. SaveError when the folder cannot be written.
    """
    files: dict[str, str | bytes] = {
        "results.json": json.dumps(finite(document), indent=2, allow_nan=False) + "\n",
        "points.csv": points_csv(document),
        "summary.csv": summary_csv(document),
        "report.md": render_markdown(document),
        "index.html": render_page(document),
    }
    try:
        files["pareto.png"] = picture(document)
    except MissingExtraError as error:
        _log.warning("no pareto.png: %s", error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            # An error text may hold half a character: it must not cost the report.
            write_atomic(folder / name, data.encode(errors="replace") if isinstance(data, str) else data)
    except OSError as error:
        advice = "free some space or choose another folder"
        raise SaveError(f"the report cannot be written to {folder} ({error}); {advice}") from error
