"""What a finished model holds in memory: `python -m eval.scale.use DIR` prints a line of JSON.

A fresh process loads the model and answers prompts. After each: what is resident, what share of the experts that tokens
were sent to, and what share of the others has been read.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers  # noqa: F401  (its libraries are no part of what a model takes)
from torch import nn

import mote_quant  # noqa: F401  (so that transformers reads our files)
from eval.scale.watching import memory, resident_share
from mote_quant.hf.loading import load_model
from mote_quant.moe import blocks
from mote_quant.streaming.paging import release_module

PROMPTS = ((1, 1), (2, 2), (8, 16))
"""Tokens given, tokens to be made."""
SEED = 0

Shares = dict[tuple[str, int], float]


def main() -> None:
    """See the module's docstring."""
    before = memory()
    started = time.monotonic()
    model = load_model(Path(sys.argv[1]))
    rows: dict[str, Any] = {"start": before, "load_seconds": time.monotonic() - started, "loaded": memory()}
    # Loading touches the ends of every tensor, and the system maps some of what lies around them.
    rows["touched_by_loading"] = _mean(_shares(model).values())
    release_module(model)
    visited = _watch(model)
    rows["prompts"] = [_prompt(model, given, new, visited) for given, new in PROMPTS]
    rows["peak"] = memory()["peak"]
    sys.stdout.write(json.dumps(rows) + "\n")


def _watch(model: nn.Module) -> dict[str, set[int]]:
    """Path of each mixture layer -> the experts that tokens were sent to, from now on."""
    visited: dict[str, set[int]] = {path: set() for path in blocks(model)}

    def hook(path: str) -> Any:
        def seen(module: nn.Module, args: Any, choice: Any) -> None:
            visited[path] |= set(choice.experts.flatten().tolist())

        return seen

    for path, block in blocks(model).items():
        block.gate.register_forward_hook(hook(path))
    return visited


def _shares(model: nn.Module) -> Shares:
    """How much of each expert is resident."""
    experts = [(path, number) for path, block in blocks(model).items() for number in range(len(block.experts))]
    return {(path, n): resident_share(blocks(model)[path].experts[n].buffers()) for path, n in experts}


def _prompt(model: Any, given: int, new: int, visited: dict[str, set[int]]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(10, model.config.get_text_config().vocab_size, (1, given), generator=generator)
    started = time.monotonic()
    made = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    seconds = time.monotonic() - started
    now = _shares(model)
    seen = {(path, number) for path, numbers in visited.items() for number in numbers}
    return {
        **memory(),
        "seconds": seconds,
        "given": given,
        "tokens": made.shape[1] - given,
        "experts": len(now),
        "visited": len(seen),
        "resident_of_visited": _mean([now[expert] for expert in seen]),
        "read_of_others": max((now[expert] for expert in now.keys() - seen), default=0.0),
    }


def _mean(shares: Collection[float]) -> float:
    """0 for a model without experts."""
    return fmean(shares) if shares else 0.0


if __name__ == "__main__":
    main()
