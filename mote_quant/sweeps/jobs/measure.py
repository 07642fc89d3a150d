"""What a packed model is worth: reloaded from its files, asked, weighed, timed, and compared with what it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from mote_quant.data.source import Source
from mote_quant.errors import MoteError, RunError
from mote_quant.evaluate import evaluate
from mote_quant.evaluate.compare import compare
from mote_quant.evaluate.harness import run_tasks
from mote_quant.evaluate.routing import routing
from mote_quant.evaluate.speed import measure_speed, peak_resident_bytes, reset_peak
from mote_quant.hf.loading import load_model
from mote_quant.memory.ledger import weigh
from mote_quant.sweeps.cells import AGAIN, Job, Result
from mote_quant.sweeps.jobs.opening import open_data
from mote_quant.sweeps.jobs.weigh import expert_bytes


def run(job: Job) -> Result:
    """settings: model (folder), dense (folder), trained (folder or None), data, samples, compared, tasks, speed."""
    values = job.settings
    source, processor = open_data(*values["data"])
    reset_peak()
    model = load_model(values["model"])
    figures: Result = {**expert_bytes(weigh(model)), **_scores(model, source, values["samples"])}
    peak = peak_resident_bytes()
    if values["speed"]:
        figures |= measure_speed(model)
    figures |= routing(model, source, limit=values["compared"])
    figures |= _distances(model, source, values)
    figures |= _tasks(model, processor, values["tasks"], values["task_limit"])
    _check_finite(figures)
    return figures | {"peak_resident_bytes": peak}


def _tasks(model: nn.Module, processor: Any, tasks: Sequence[str], limit: int | None) -> Result:
    """Every task by itself: one that fails (`lost_tasks`) takes no other figure along, and is asked again next time."""
    found: Result = {}
    lost: dict[str, str] = {}
    for task in tasks:
        try:
            found |= run_tasks(model, processor, [task], limit=limit)
        except Exception as error:
            lost[task] = error.message if isinstance(error, MoteError) else f"{type(error).__name__}: {error}"
    return found | ({"lost_tasks": lost, AGAIN: True} if lost else {})


def _check_finite(figures: Result) -> None:
    """RunError for a figure that is no number: nothing could be compared with it."""
    wrong = [name for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)]
    if wrong:
        raise RunError(f"the packed model gives no finite {', '.join(wrong)}")


def _scores(model: nn.Module, source: Source, samples: int | None) -> dict[str, float]:
    scores = evaluate(model, source, limit=samples)
    return {name: value for name, value in scores.items() if name != "tokens"}


def _distances(model: nn.Module, source: Source, values: dict[str, Any]) -> dict[str, float]:
    """How far the outputs are from the dense model's, and from those of the same model before it was quantized."""
    found: dict[str, float] = {}
    for name, key in (("dense", "dense"), ("unquantized", "trained")):
        if values[key] is not None:
            reference = load_model(values[key])
            distance = compare(model, reference, source, limit=values["compared"])
            found |= {f"kl_{name}": distance["kl"], f"agreement_{name}": distance["agreement"]}
            if name == "unquantized":
                found["unquantized_loss"] = _scores_loss(reference, source, values["samples"])
    return found


def _scores_loss(model: nn.Module, source: Source, samples: int | None) -> float:
    """The loss before quantization, on the very samples of the score."""
    import torch

    from mote_quant.evaluate.language import mean_loss

    with torch.no_grad():
        return mean_loss(model, source.collate, source.test[:samples])
