"""From a trained model to a packed one on disk."""

from __future__ import annotations

import json
from typing import Any

from mote_quant.pipeline import apply
from mote_quant.recipe import load
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs.opening import open_base, open_data


def run(job: Job) -> Result:
    """settings: start (folder of the trained or the base model), recipe, data. The model lies in `folder`/model."""
    values = job.settings
    source, processor = open_data(*values["data"])
    model, _ = open_base(values["start"], 0)
    output = job.folder / "model"
    apply(load(values["recipe"]), model, processor=processor, data=source, output=output)
    report = json.loads((output / "run" / "report.json").read_text())
    return _calibration(report["steps"][-1])


def _calibration(notes: dict[str, Any]) -> Result:
    """How many calibration tokens the routed experts saw: the least, and the mean."""
    modules = notes.get("modules", {}).values()
    seen = [note["tokens"] for note in modules if note.get("role") == "routed" and note.get("tokens") is not None]
    if not seen or not any(seen):
        return {}
    return {"calibration_tokens_min": min(seen), "calibration_tokens_mean": sum(seen) / len(seen)}
