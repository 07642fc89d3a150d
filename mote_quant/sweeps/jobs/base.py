"""The dense model that all contenders start from: trained by its recipe, or an embedded model as it is."""

from __future__ import annotations

import json
from pathlib import Path

from mote_quant.pipeline import apply
from mote_quant.recipe import load
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs.opening import open_base


def run(job: Job) -> Result:
    """settings: model, seed, recipe (a mapping) or None. The model lies in `folder`/model."""
    values = job.settings
    output = job.folder / "model"
    model, processor = open_base(values["model"], values["seed"])
    if values["recipe"] is None:
        return _saved(model, processor, output)
    apply(load(values["recipe"]), model, processor=processor, output=output)
    metrics = json.loads((output / "run" / "report.json").read_text())["metrics"]
    return {"train_seconds": metrics["train_seconds"], "tokens_trained": metrics["tokens_seen"]}


def _saved(model: object, processor: object, output: Path) -> Result:
    for part in (model, processor):
        if part is not None:
            part.save_pretrained(str(output))  # type: ignore[attr-defined]
    return {"train_seconds": 0.0, "tokens_trained": 0}
