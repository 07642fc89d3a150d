"""Build the dense model, train the mixtures, quantize, save, reload in a fresh process, compare."""

from __future__ import annotations

import copy
import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import nn

from mote_quant.data import open_source
from mote_quant.data.digits_vqa.model import build_dense
from mote_quant.data.digits_vqa.processor import build_processor
from mote_quant.data.source import Source
from mote_quant.demo.contenders import DENSE, contenders, training_recipes
from mote_quant.demo.page import render_page
from mote_quant.errors import RunError
from mote_quant.evaluate.chart import draw_pareto
from mote_quant.hf.integrity import write_atomic
from mote_quant.pipeline import Options, apply
from mote_quant.steps import Progress, Silent

_log = logging.getLogger(__name__)
Point = dict[str, Any]


def run(output: Path, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the demo into `output` (resumable); returns and writes `report.json` with one point a contender."""
    progress = progress or Silent()
    options = Options(progress=progress)
    processor = build_processor()
    source = open_source("digits-vqa", processor=processor, seed=seed)
    bases, seconds = _train(output, seed, processor, source, options)
    lines = contenders(seed)
    progress.start("quantizing and saving", len(lines))
    for done, contender in enumerate(lines, start=1):
        model = copy.deepcopy(bases[contender.base])
        apply(contender.tail, model, processor=processor, data=source, output=output / contender.name)
        progress.advance(done)
    figures = _measure_in_fresh_process([output / contender.name for contender in lines], seed)
    points = [
        {"contender": c.name, "seed": seed, "train_seconds": seconds[c.base], **figures[str(output / c.name)]}
        for c in lines
    ]
    return _report(output, points)


def _train(
    output: Path, seed: int, processor: Any, source: Source, options: Options
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The dense model, then each mixture from a copy of it; with the seconds each one's training took."""
    options.progress.start("teaching the vision tower to read digits", 1)
    start: nn.Module = build_dense(seed)
    options.progress.advance(1)
    models: dict[str, nn.Module] = {}
    seconds: dict[str, float] = {}
    for base, recipe in training_recipes(seed).items():
        model = start if base == DENSE else copy.deepcopy(models[DENSE])
        folder = output / f"{base}-trained"
        models[base] = apply(recipe, model, processor=processor, data=source, output=folder, options=options)
        metrics = json.loads((folder / "run" / "report.json").read_text())["metrics"]
        seconds[base] = round(metrics["train_seconds"], 1)
    return models, seconds


def _measure_in_fresh_process(folders: list[Path], seed: int) -> dict[str, Point]:
    command = [sys.executable, "-m", "mote_quant.demo.measure", *map(str, folders), "--seed", str(seed)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RunError(f"reloading in a fresh process failed:\n{finished.stderr[-2000:]}")
    figures: dict[str, Point] = json.loads(finished.stdout.splitlines()[-1])
    return figures


def _report(output: Path, points: list[Point]) -> dict[str, Any]:
    report = {"points": points}
    write_atomic(output / "report.json", json.dumps(report, indent=2))
    with (output / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    draw_pareto(points, output / "pareto.png", title="digits-vqa: accuracy against the bytes of the experts")
    write_atomic(output / "index.html", render_page(points, output / "pareto.png"))
    return report
