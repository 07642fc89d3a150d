"""One model, in a process of its own: how fast it generates and what it holds. `model` starts these; one line of JSON.

python -m eval.benchmarks.generation "MoTE+int4" [--quick] [--save DIR | --load DIR]
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from eval.benchmarks.limits import sweep
from eval.benchmarks.models import KINDS, build
from eval.benchmarks.scale import FULL, QUICK, Scale
from mote_quant.evaluate.speed import peak_resident_bytes, reset_peak
from mote_quant.hf.loading import load_model
from mote_quant.hf.saving import stored_bytes
from mote_quant.kernels.cpu import library
from mote_quant.memory.ledger import weigh
from mote_quant.moe import blocks

_STATUS = Path("/proc/self/status")


class Stopwatch(BaseStreamer):  # type: ignore[misc]
    """Notes when `generate` hands over the prompt and each token: the CPU time of this thread."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then token after token."""
        self.stamps.append(time.thread_time())

    def end(self) -> None:
        """Nothing is open."""


@torch.no_grad()
def measure(model: nn.Module, scale: Scale) -> dict[str, Any]:
    """Seconds of every prefill and every decoding step, the peak of resident memory, and what the kernels counted."""
    prefill, decode = [], []
    reset_peak()
    for repeat in range(scale.repeats + 1):
        # The first one warms up, and is short.
        watch = Stopwatch()
        _generate(model, watch, scale.prompt if repeat else 8, scale.new_tokens if repeat else 2)
        steps = [after - before for before, after in zip(watch.stamps, watch.stamps[1:], strict=False)]
        if repeat:
            prefill.append(steps[0])
            decode += steps[1:]
    found = {"prefill_s": prefill, "decode_s": decode, "read_bytes": read_bytes(model), "calls": library.calls()}
    return found | {"peak_bytes": peak_resident_bytes()}


def read_bytes(model: nn.Module) -> int:
    """What one token reads: everything but the experts that it is not sent to (the embedding is the head as well)."""
    spared = ((len(block.experts) - block.gate.top_k, block.experts[0]) for block in blocks(model).values())
    return weigh(model).resident_bytes - sum(count * _nbytes(expert) for count, expert in spared)


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _generate(model: Any, watch: Stopwatch, prompt: int, new_tokens: int) -> None:
    ids = torch.randint(0, model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
    model.generate(
        ids, attention_mask=torch.ones_like(ids), streamer=watch, do_sample=False, pad_token_id=0, eos_token_id=None,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens,
    )  # fmt: skip


def held(model: nn.Module, folder: Path, before: int) -> dict[str, int]:
    """What a loaded model takes: the sum of its tensors, what the process grew by, and what it was on disk.

    Weights may be mapped from their file, and are in memory only once they were read: all of them are.
    """
    for tensor in model.state_dict().values():
        sweep(tensor.contiguous())()
    gc.collect()
    grown = resident() - before
    return {"tensor_bytes": weigh(model).resident_bytes, "grown_bytes": grown, "stored_bytes": stored_bytes(folder)}


def resident() -> int:
    """Bytes of physical memory of this process (Linux)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def run(kind: str, scale: Scale, save: Path | None = None, load: Path | None = None) -> dict[str, Any]:
    """Build a model or load it from a folder, measure it, keep it in a folder."""
    before = resident()
    model: Any = load_model(load) if load else build(KINDS[kind], scale.model)
    found = measure(model, scale)
    # Afterwards, so that what the first use makes of a weight is seen.
    found |= held(model, load, before) if load else {}
    if save:
        model.save_pretrained(save)
    return found


def main() -> None:
    """`run`, as the command line asks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--save", type=Path, help="keep the model in this folder")
    parser.add_argument("--load", type=Path, help="load the model from this folder")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(given.kind, QUICK if given.quick else FULL, given.save, given.load)))


if __name__ == "__main__":
    main()
