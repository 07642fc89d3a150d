"""(c) A whole model of the shape of Qwen2.5-1.5B through `generate`: decoding, reading the prompt, memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from eval.benchmarks.rows import Row, compared
from eval.benchmarks.scale import QUICK, Scale
from mote_quant.memory.units import human_bytes

OURS = "MoTE+int4"
KINDS = ("bf16 dense", "bf16 MoE", "MoTE", OURS)
_SHORT = {"bf16 dense": "dense-bf16", "bf16 MoE": "fp-moe", "MoTE": "mote-bf16-shared"}
_ROUNDS = 2


def rows(scale: Scale) -> list[Row]:
    """Each kind in processes of its own, in turn, twice; the second time ours comes from its files."""
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for done in range(_ROUNDS):
            for kind in KINDS:
                disk = {"load" if done else "save": Path(folder)} if kind == OURS else {}
                runs[kind].append(_run(kind, scale, **disk))
    peers = [kind for kind in KINDS if kind != OURS]
    made = [_times(runs, step, peer, scale) for step in ("decode", "prefill") for peer in peers]
    return made + [_peak(runs, peer) for peer in peers] + _resident(runs[OURS][-1])


def _run(kind: str, scale: Scale, **disk: Path) -> dict[str, Any]:
    options = [text for name, folder in disk.items() for text in (f"--{name}", str(folder))]
    quick = ["--quick"] if scale is QUICK else []
    command = [sys.executable, "-m", "eval.benchmarks.generation", kind, *quick, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _times(runs: dict[str, list[dict[str, Any]]], step: str, peer: str, scale: Scale) -> Row:
    times = {kind: [seconds for run in runs[kind] for seconds in run[f"{step}_s"]] for kind in (OURS, peer)}
    tokens = scale.prompt if step == "prefill" else 1
    speeds = [f"{tokens / statistics.median(times[kind]):.2f}" for kind in (OURS, peer)]
    note = f"{speeds[0]} and {speeds[1]} tokens/s"
    read = runs[OURS][0]["read_bytes"] if step == "decode" else 0
    return compared(f"model-{step}-vs-{_SHORT[peer]}", OURS, peer, times, tokens=tokens, note=note, read_bytes=read)


def _peak(runs: dict[str, list[dict[str, Any]]], peer: str) -> Row:
    """The most memory that the process held while it generated; of runs that built their model, not loaded it."""
    ours, other = (runs[kind][0]["peak_bytes"] for kind in (OURS, peer))
    note = f"peak {human_bytes(ours)} and {human_bytes(other)}"
    return Row(f"model-peak-memory-vs-{_SHORT[peer]}", OURS, peer, other / ours, (other / ours,) * 2, note=note)


def _resident(loaded: dict[str, Any]) -> list[Row]:
    """The stricter of two ways to ask: what the process grew by when it loaded the model."""
    stored, grown, tensors = (loaded[f"{name}_bytes"] for name in ("stored", "grown", "tensor"))
    sizes = f"the process grew by {human_bytes(grown)}, tensors {human_bytes(tensors)}, stored {human_bytes(stored)}"
    ratios = sorted((grown / stored, tensors / stored))
    note = f"{sizes}; spread: tensors and process"
    return [Row("resident-vs-stored", OURS, "its stored bytes", ratios[1], (ratios[0], ratios[1]), note=note)]
