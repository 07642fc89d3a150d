"""A sweep small enough for a test, and a base model and text to run it on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests import pico
from tests.processors import tokenizer

INT4: dict[str, Any] = {"format": "int4", "group_size": 16}
TINY: dict[str, Any] = {
    "name": "tiny",
    "base": {"model": "dense"},
    "data": "words.txt",
    "seeds": [0, 1],
    "learning_rates": [1.0e-3, 1.0e-2],
    "train": {"steps": 2, "batch_size": 4, "max_length": 16},
    "quantize": {"calibration": {"samples": 8, "max_length": 16}},
    "measure": {"samples": 8, "compared": 4},
    "bits": {"router": "float32", "*": "bfloat16"},
    "contenders": {
        "dense": {"group": "dense", "variants": {"bf16": {}, "int4": {"ffn": INT4}}},
        "moe": {
            "group": "full-precision MoE",
            "upcycle": {"experts": 4, "top_k": 2, "shared": "none"},
            "train": {"what": ["routed", "router"]},
            "variants": {"bf16": {}, "int4": {"routed": INT4}},
        },
        "mote": {
            "group": "MoTE",
            "upcycle": {"experts": 4},
            "train": {"what": ["routed", "router"]},
            "qat": {"routed": "ternary"},
            "bits": {"shared": INT4},
        },
    },
}


def tiny(**changes: Any) -> dict[str, Any]:
    """A copy of TINY with top-level keys replaced."""
    return {**copy.deepcopy(TINY), **changes}


def lay_out(folder: Path, family: str = "llama") -> dict[str, Any]:
    """A pico model with a word tokenizer and a text file in `folder`; the tiny sweep on them."""
    pico.PICO[family]().save_pretrained(folder / "dense")
    tokenizer().save_pretrained(folder / "dense")
    words = [f"w{(7 * n + n // 5) % 60}" for n in range(6000)]
    (folder / "words.txt").write_text(" ".join(words))
    return tiny(base={"model": str(folder / "dense")}, data=str(folder / "words.txt"))
