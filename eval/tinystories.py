"""The stories and the up-cycled models that `eval.allocation` works on; `eval/sweeps/tinystories.yaml` compares them.

The data folder is that of `eval.stories`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mote_quant.data import text
from mote_quant.data.local import DOCUMENT_END
from mote_quant.data.source import Source

LENGTH, BATCH, STEPS, HELD_OUT = 256, 16, 300, 200
UPCYCLED: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "moe": ({"experts": 4, "top_k": 2, "shared": "none"}, {}, 4.0e-3),
    "mote": ({"experts": 4, "top_k": 1}, {"routed": "ternary"}, 2.0e-2),
}
"""Name -> how it is up-cycled, what is trained in which format, at which rate."""


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


def recipe(name: str, seed: int) -> dict[str, Any]:
    """Up-cycle and train; the latent weights are kept."""
    upcycle, bits, rate = UPCYCLED[name]
    train = {"what": ["routed", "router"], "data": "tinystories", "steps": STEPS, "batch_size": BATCH}
    pipeline = [{"upcycle": upcycle}, {"train": train | {"learning_rate": rate}}]
    return {"name": name, "seed": seed, "bits": bits, "pipeline": pipeline}
