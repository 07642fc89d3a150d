"""One training of one contender at one learning rate and seed."""

from __future__ import annotations

import json
import math

import torch

from mote_quant.errors import TrainingError
from mote_quant.evaluate.language import mean_loss
from mote_quant.pipeline import apply
from mote_quant.recipe import load
from mote_quant.sweeps.candidates import with_teacher
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs.opening import open_base, open_data


def run(job: Job) -> Result:
    """settings: base and teacher (folders), recipe, data, samples. The latent model lies in `folder`/model.

    The validation loss is what learning rates are chosen by.
    """
    values = job.settings
    source, processor = open_data(*values["data"])
    model, _ = open_base(values["base"], 0)
    output = job.folder / "model"
    recipe = load(values["recipe"])
    if values["teacher"] is not None:
        recipe = with_teacher(recipe, values["teacher"])
    apply(recipe, model, processor=processor, data=source, output=output)
    report = json.loads((output / "run" / "report.json").read_text())
    with torch.no_grad():
        validation = mean_loss(model, source.collate, source.validation[: values["samples"]])
    if not math.isfinite(validation):
        raise TrainingError(f"the validation loss is {validation} after the last step: lower the learning rate")
    return {
        "validation_loss": validation,
        "train_seconds": report["metrics"]["train_seconds"],
        "tokens_trained": report["metrics"]["tokens_seen"],
    }
