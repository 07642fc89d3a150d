"""Lay out a real checkpoint and its text for `mote-quant sweep tinystories` and `frontier-stories`.

    python -m eval.stories --data DIR [--output runs/stories]

DIR holds `checkpoints/tinystories-656k` and the two TinyStories texts (`text/tinystories-v1-train-2mb.txt`,
`text/tinystories-v2-train-slice.txt`). Training and validation come from the first text; what is measured is the last
fifth of the second one, which nothing is trained or tuned on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mote_quant.data.local import read_documents

FIRST, SECOND = "text/tinystories-v1-train-2mb.txt", "text/tinystories-v2-train-slice.txt"
CHECKPOINT = "checkpoints/tinystories-656k"


def lay_out(data: Path, output: Path) -> None:
    """Write `output`/train.jsonl, heldout.jsonl and model (in float32)."""
    output.mkdir(parents=True, exist_ok=True)
    # The first file was cut off in its last story.
    _write(output / "train.jsonl", read_documents(data / FIRST)[:-1])
    second = read_documents(data / SECOND)
    _write(output / "heldout.jsonl", second[-(len(second) // 5) :])
    model = AutoModelForCausalLM.from_pretrained(data / CHECKPOINT, dtype=torch.float32)
    model.save_pretrained(output / "model")
    AutoTokenizer.from_pretrained(data / CHECKPOINT).save_pretrained(output / "model")


def _write(path: Path, stories: list[str]) -> None:
    rows = (json.dumps({"text": f"<|start_story|>{story}"}) for story in stories)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Read the arguments and lay out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/stories"))
    arguments = parser.parse_args()
    lay_out(arguments.data, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
