"""What a training costs beside the arithmetic: processes that wait for each other, and checkpoints.

    python -m eval.training_cost [--quick] [--record]

Each run is a process (or two) of its own with one thread each, one after the other, the kinds in turn. Timed are ten
steps after the first two, one of which is looked at, as one of ten is in a training of 500. To be run alone on the
machine. With --record the table goes to eval/results/training-cost.json.

- efficiency: steps a second of two processes, over twice those of one, for the same batch (ideal: 1); of a small batch,
  too, for what is exchanged does not shrink with it
- checkpoint stall: seconds a checkpoint takes, over a minute (one checkpoint a minute)

What watching costs is timed by `python -m eval.watching`, bytes sent by `python -m eval.scaling`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mote_quant import pipeline
from mote_quant.data.source import Sample, Source, fingerprint_of
from mote_quant.data.text import collate_blocks
from mote_quant.hf import checkpoint
from mote_quant.ranks import leave, ranks
from mote_quant.steps.train import arguments

RESULT = Path(__file__).parent / "results" / "training-cost.json"
ONE, TWO = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
LEFT_OUT, TIMED = 2, 10
LOOKS = 2
"""At steps 6 and 12, the second of which is outside of what is timed."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2 with four ternary experts a layer, and a batch."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    batch: int
    length: int
    rounds: int


SHAPES = {
    "full": Shape(512, 1408, 4, 4096, 16, 512, 2),
    "small batch": Shape(512, 1408, 4, 4096, 8, 256, 2),
    "quick": Shape(64, 96, 2, 256, 4, 32, 1),
}


class Clock:
    """A `Progress` that notes when each training step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._training = False

    def start(self, title: str, total: int) -> None:
        """A stretch begins."""
        self._training = title == "training"

    def advance(self, done: int, **figures: float) -> None:
        """A step of it is done."""
        if self._training:
            self.times.append(time.perf_counter())


def source(shape: Shape) -> Source:
    """Random tokens: what they are makes no difference to what a step costs."""
    generator = torch.Generator().manual_seed(0)
    samples: list[Sample] = [
        {"input_ids": torch.randint(shape.vocabulary, (shape.length,), generator=generator), "bytes": shape.length}
        for _ in range(shape.batch * 4)
    ]
    return Source("random", fingerprint_of(str(shape)), samples, [], [], collate_blocks, "text")


def recipe(shape: Shape, steps: int, checkpoint_every: int) -> dict[str, Any]:
    """Up-cycle and train routed experts and routers."""
    train = {"what": ["routed", "router"], "data": "random", "steps": steps, "batch_size": shape.batch}
    return {
        "name": "cost",
        "bits": {"routed": "ternary", "router": "float32"},
        "pipeline": [
            {"upcycle": {"noise": 0.1}},
            {"train": train | {"checkpoint_every": checkpoint_every}},
            {"quantize": {}},
        ],
    }


def work(shape: Shape, settings: dict[str, Any], told: Path) -> None:
    """One process's part of a run; the first one writes seconds a step, and of each checkpoint, to `told`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers}
    config = Qwen2Config(**sizes, vocab_size=shape.vocabulary, num_attention_heads=8, num_key_value_heads=2)
    model, clock, written = Qwen2ForCausalLM(config), Clock(), list[float]()
    original = checkpoint.write

    def timed(*args: Any, **kwargs: Any) -> Path:
        started = time.perf_counter()
        path = original(*args, **kwargs)
        written.append(time.perf_counter() - started)
        return path

    checkpoint.write, arguments._LOGGED = timed, LOOKS
    steps, every = settings.pop("steps"), settings.pop("checkpoint_every")
    output = settings.pop("output", None)
    options = pipeline.Options(progress=clock, **settings)
    pipeline.apply(recipe(shape, steps, every), model, data=source(shape), output=output, options=options)
    if ranks().main:
        told.write_text(json.dumps({"ends": clock.times, "checkpoints": written}))
    leave()


def run(name: str, launcher: Sequence[str], **settings: Any) -> dict[str, list[float]]:
    """`work` under a launcher."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        settings = {"steps": LEFT_OUT + TIMED + 1, "checkpoint_every": 10**6, **settings}
        if settings.pop("keeps", False):
            settings["output"] = str(Path(folder) / "out")
        command = [*launcher, "-m", "eval.training_cost", "--work", json.dumps([name, settings, str(told)])]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found: dict[str, list[float]] = json.loads(told.read_text())
        return found


def in_turn(name: str, kinds: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Kind -> mean seconds of a step, once a round; every kind in every round."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(SHAPES[name].rounds):
        for kind, settings in kinds.items():
            ends = run(name, **settings)["ends"]
            found[kind].append((ends[LEFT_OUT + TIMED - 1] - ends[LEFT_OUT - 1]) / TIMED)
    return found


def efficiency(name: str) -> dict[str, Any]:
    """Two processes against one."""
    kinds: dict[str, dict[str, Any]] = {
        "one": {"launcher": ONE},
        "ddp": {"launcher": TWO, "sharding": "ddp"},
        "fsdp2": {"launcher": TWO, "sharding": "fsdp2"},
    }
    seconds = in_turn(name, kinds)
    ratios = {
        kind: [one / 2 / other for one, other in zip(seconds["one"], seconds[kind], strict=True)]
        for kind in ("ddp", "fsdp2")
    }
    return {"seconds": seconds, "efficiency": {kind: spread(found) for kind, found in ratios.items()}}


def stall(name: str) -> dict[str, Any]:
    """A checkpoint a minute."""
    seconds = run(name, ONE, keeps=True, steps=6, checkpoint_every=2)["checkpoints"]
    return {"seconds": spread(seconds), "share_of_a_minute": max(seconds) / 60}


def spread(values: list[float]) -> dict[str, Any]:
    """Median, standard deviation, and all of them."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return {"median": median(values), "sd": deviation, "values": [round(value, 5) for value in values]}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: to see that it works")
    parser.add_argument("--record", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        name, settings, told = json.loads(given.work)
        work(SHAPES[name], settings, Path(told))
        return
    names = ["quick"] if given.quick else ["full", "small batch"]
    found = {name: {"shape": asdict(SHAPES[name]), **efficiency(name)} for name in names}
    found["stall"] = stall(names[0])
    print(json.dumps(found, indent=2))
    if given.record:
        RESULT.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
