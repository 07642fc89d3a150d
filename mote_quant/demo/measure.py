"""Run as a process of its own: reload saved models with plain `from_pretrained`, let them answer, weigh them.

python -m mote_quant.demo.measure DIR [DIR ...] --seed N
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

import mote_quant  # noqa: F401 (registers our reader with transformers)
from mote_quant.data.digits_vqa.source import Sizes, build_source
from mote_quant.data.source import Source
from mote_quant.evaluate import evaluate
from mote_quant.memory.ledger import PAPER_ROLES, weigh

EXPERTS = PAPER_ROLES
QUESTIONS = 2000


def measure(folder: Path, source: Source) -> dict[str, Any]:
    """Accuracy and answer loss on the test split, and what the feed-forward experts weigh in the three accountings."""
    model = AutoModelForImageTextToText.from_pretrained(str(folder))
    ledger = weigh(model)
    experts = [weight for role, weight in ledger.roles.items() if role in EXPERTS]
    scores = evaluate(model, source)
    return {
        "accuracy": scores["accuracy"],
        "loss": scores["loss"],
        "paper_bytes": round(sum(weight.paper_bytes for weight in experts)),
        "stored_bytes": sum(weight.stored_bytes for weight in experts),
        "resident_bytes": sum(weight.resident_bytes for weight in experts),
        "model_stored_bytes": ledger.stored_bytes,
    }


def main() -> None:
    """Print one JSON object, folder -> figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(str(arguments.folders[0]))
    # Each split is drawn by itself, so the test questions are those of the whole source.
    source = build_source(processor, arguments.seed, Sizes(train=0, validation=0, test=QUESTIONS))
    figures = {str(folder): measure(folder, source) for folder in arguments.folders}
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
