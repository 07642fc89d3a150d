"""Build the dense model, train the mixtures, quantize, save, reload in a fresh process, compare."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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

Point = dict[str, Any]


def run(output: Path, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the demo into `output` (resumable); returns and writes `report.json` with one point a contender."""
    with _one_thread():
        return _run(output, seed, progress or Silent())


def _run(output: Path, seed: int, progress: Progress) -> dict[str, Any]:
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
    progress.start("reloading in fresh processes and answering", len(lines))
    figures = _measure_in_fresh_processes([output / contender.name for contender in lines], seed)
    progress.advance(len(lines))
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Models this small only lose by sharing a step between threads, and lose badly where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure_in_fresh_processes(folders: list[Path], seed: int) -> dict[str, Point]:
    """Reload and measure, half of the models in each of two new processes."""
    running = [_start_measuring(part, seed) for part in (folders[::2], folders[1::2]) if part]
    figures: dict[str, Point] = {}
    for process in running:
        output, errors = process.communicate()
        if process.returncode:
            raise RunError(f"reloading in a fresh process failed:\n{errors[-2000:]}")
        figures |= json.loads(output.splitlines()[-1])
    return figures


def _start_measuring(folders: list[Path], seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mote_quant.demo.measure", *map(str, folders), "--seed", str(seed)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone)


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
