"""A real checkpoint, up-cycled: loss before, at step 0, after training, after quantization; beside full-precision MoEs.

    python -m eval.tinystories --data DIR [--seeds 0 1 2] [--output eval/results/tinystories.json]

DIR holds `checkpoints/tinystories-656k` and the two TinyStories texts (`text/tinystories-v1-train-2mb.txt`,
`text/tinystories-v2-train-slice.txt`). Each contender's learning rate is chosen on held-out stories of the training
text, with seed 0; the reported figures are on the last fifth of the second text, which nothing was trained or tuned on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import mote_quant
from mote_quant.data import text
from mote_quant.data.local import DOCUMENT_END
from mote_quant.data.source import Source
from mote_quant.evaluate import evaluate
from mote_quant.hf.loading import load_model
from mote_quant.planning import plan
from mote_quant.recipe import load

LENGTH, BATCH, STEPS, HELD_OUT = 256, 16, 300, 200
INT4 = {"format": "int4", "group_size": 64, "method": "gptq"}
INT3 = {"format": "int3", "group_size": 64, "method": "gptq"}


@dataclass(frozen=True)
class Contender:
    """An up-cycling, what is trained, the rates to choose from, and the formats after training."""

    name: str
    upcycle: dict[str, Any]
    what: list[str]
    rates: tuple[float, ...]
    bits: dict[str, Any]
    training_bits: dict[str, Any]


MOTE = {"experts": 4, "top_k": 1}
CONTENDERS = [
    Contender("mote-4x1-int4-shared", MOTE, ["routed", "router"], (1e-2, 2e-2, 4e-2),
              {"routed": "ternary", "shared": INT4}, {"routed": "ternary"}),
    Contender("mote-4x1-int4-shared-trained", MOTE, ["routed", "router", "shared"], (2e-3, 4e-3, 8e-3),
              {"routed": "ternary", "shared": INT4}, {"routed": "ternary"}),
    Contender("moe-4x2-int3", {"experts": 4, "top_k": 2, "shared": "none"}, ["routed", "router"], (2e-3, 4e-3, 8e-3),
              {"routed": INT3}, {}),
    Contender("moe-3x2-int4", {"experts": 3, "top_k": 2, "shared": "none"}, ["routed", "router"], (2e-3, 4e-3, 8e-3),
              {"routed": INT4}, {}),
]  # fmt: skip


def open_stories(root: Path) -> Source:
    """Training and validation blocks from the first text, test blocks from the last fifth of the second."""
    tokenizer = AutoTokenizer.from_pretrained(root / "checkpoints/tinystories-656k")
    first = (root / "text/tinystories-v1-train-2mb.txt").read_text().split(DOCUMENT_END)[:-1]
    second = (root / "text/tinystories-v2-train-slice.txt").read_text().split(DOCUMENT_END)
    parts = {"train": first[:-HELD_OUT], "validation": first[-HELD_OUT:], "test": second[-(len(second) // 5) :]}
    splits = {
        name: text.blocks([f"<|start_story|>{story.strip()}" for story in stories], tokenizer, LENGTH)
        for name, stories in parts.items()
    }
    return Source("tinystories", "tinystories", **splits, collate=text.collate_blocks, kind="text")


def dense(root: Path) -> Any:
    """The checkpoint, in float32."""
    path = str(root / "checkpoints/tinystories-656k")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def recipe(contender: Contender, rate: float, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Up-cycle and train; the latent weights are kept."""
    train = {"what": contender.what, "data": "tinystories", "steps": steps, "batch_size": BATCH, "learning_rate": rate}
    pipeline = [{"upcycle": contender.upcycle}, {"train": train}]
    return {"name": contender.name, "seed": seed, "bits": contender.training_bits, "pipeline": pipeline}


def tail(contender: Contender, seed: int) -> dict[str, Any]:
    """Quantize what was trained."""
    calibration = {"data": "tinystories", "samples": 128, "batch_size": 16}
    pipeline = [{"quantize": {"calibration": calibration}}]
    return {"name": contender.name, "seed": seed, "bits": contender.bits, "pipeline": pipeline}


def choose_rate(root: Path, source: Source, contender: Contender) -> dict[str, float]:
    """Validation loss by rate."""
    losses = {}
    for rate in contender.rates:
        model = mote_quant.apply(recipe(contender, rate, seed=0), dense(root), data=source)
        losses[str(rate)] = evaluate(model, source, split="validation")["loss"]
    return losses


def measure(root: Path, source: Source, contender: Contender, rate: float, seed: int) -> dict[str, Any]:
    """Test loss at step 0, after training, after quantization, and after a reload from disk."""
    started = time.monotonic()
    upcycled = {**recipe(contender, rate, seed), "pipeline": [{"upcycle": contender.upcycle}]}
    start = evaluate(mote_quant.apply(upcycled, dense(root)), source)["loss"]
    model = mote_quant.apply(recipe(contender, rate, seed), dense(root), data=source)
    trained = evaluate(model, source)["loss"]
    planned = plan(load(tail(contender, seed)), model).result.to_json()
    with tempfile.TemporaryDirectory() as folder:
        mote_quant.apply(tail(contender, seed), model, data=source, output=folder)
        quantized = evaluate(model, source)["loss"]
        reloaded = evaluate(load_model(folder), source)
    return {
        "contender": contender.name, "seed": seed, "rate": rate, "step_0": start, "trained": trained,
        "quantized": quantized, "reloaded": reloaded["loss"], "perplexity": reloaded["perplexity"],
        "expert_bits": _expert_bits(planned), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def _expert_bits(planned: dict[str, Any]) -> float:
    """Stored bits of all expert weights for each weight of the dense feed-forward network, scales included."""
    experts = sum(planned["roles"][role]["stored_bytes"] for role in ("routed", "shared") if role in planned["roles"])
    return round(8 * experts / (2 * 3 * 128 * 384), 2)


def run(root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything, with the grid of rates."""
    source = open_stories(root)
    before = evaluate(dense(root), source)
    grid, points = {}, []
    for contender in CONTENDERS:
        grid[contender.name] = choose_rate(root, source, contender)
        rate = float(min(grid[contender.name], key=lambda key: grid[contender.name][key]))
        for seed in seeds:
            points.append(measure(root, source, contender, rate, seed))
            print(json.dumps(points[-1]), flush=True)
    return {"dense": before, "grid": grid, "points": points, "summary": _summary(points)}


def _summary(points: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        by_name.setdefault(point["contender"], []).append(point)
    return {name: {key: _mean(found, key) for key in ("step_0", "trained", "quantized", "reloaded", "expert_bits")}
            | {"sd": statistics.stdev(p["reloaded"] for p in found) if len(found) > 1 else 0.0}
            for name, found in by_name.items()}  # fmt: skip


def _mean(points: list[dict[str, Any]], key: str) -> float:
    return round(statistics.mean(point[key] for point in points), 4)


def main() -> None:
    """Run and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("eval/results/tinystories.json"))
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    results = run(arguments.data, arguments.seeds)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["summary"], indent=2))


if __name__ == "__main__":
    main()
