"""Choose each contender's learning rate on the validation split of digits-vqa, never on the test split.

    python -m eval.rates --dense runs/demo/dense-trained [--contender mote 2e-3 5e-3 1e-2] [--contender moe 2e-3 4e-3]

Everything else (data, steps, batches, seed) is the shipped recipes'. Writes one row a run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import mote_quant
from mote_quant.data import open_source
from mote_quant.data.source import Source
from mote_quant.demo.contenders import training_recipes
from mote_quant.evaluate import evaluate
from mote_quant.hf.loading import load_model
from mote_quant.recipe import Recipe


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """`recipe` with this learning rate in its train step."""
    steps = [
        step.model_copy(update={"train": step.train.model_copy(update={"learning_rate": rate})}) if step.train else step
        for step in recipe.pipeline
    ]
    return recipe.model_copy(update={"pipeline": steps})


def measure(dense: Path, source: Source, contender: str, rate: float, seed: int) -> dict[str, Any]:
    """Validation loss and accuracy after training at `rate`, before any quantization of the shared weights."""
    started = time.monotonic()
    model = load_model(str(dense))
    mote_quant.apply(with_rate(training_recipes(seed)[contender], rate), model, data=source)
    scores = evaluate(model, source, split="validation")
    return {"contender": contender, "rate": rate, "seed": seed, **scores, "seconds": round(time.monotonic() - started)}


def main() -> None:
    """Run the grid and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--contender", nargs="+", action="append", required=True, metavar="NAME RATE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("eval/results/digits-rates.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    source = open_source("digits-vqa", seed=arguments.seed)
    rows = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for name, *rates in arguments.contender:
        for rate in rates:
            rows.append(measure(arguments.dense, source, name, float(rate), arguments.seed))
            print(json.dumps(rows[-1]), flush=True)
            arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
