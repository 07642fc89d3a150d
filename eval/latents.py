"""What a trained weight costs in memory, and what it learns, for each way to hold it: `latents` and `optimizer`.

    python -m eval.latents [--seeds 0 1 2] [--steps 100] [--rates 2e-3 1e-4] [--record]

A dense model of stdlib-text is trained once, up-cycled, and its routed experts and routers are trained on for each
contender with the same seeds. `bfloat16, to nearest` is the control: what bfloat16 weights learn without stochastic
rounding. Contenders whose library is not installed are left out. With --record the table goes to
eval/results/latents.json.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import mote_quant
from mote_quant import pipeline
from mote_quant.data import open_source
from mote_quant.data.source import Source
from mote_quant.data.stdlib_text.model import build_dense
from mote_quant.errors import MissingExtraError
from mote_quant.evaluate.language import mean_loss
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.steps.train import one_by_one

RESULT = Path(__file__).parent / "results" / "latents.json"
NEAREST = "bfloat16, to nearest"
CONTENDERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"latents": "bfloat16"},
    NEAREST: {"latents": "bfloat16"},
    "float32, bitsandbytes": {"optimizer": "adamw_bnb_8bit"},
    "bfloat16, bitsandbytes": {"latents": "bfloat16", "optimizer": "adamw_bnb_8bit"},
    "bfloat16, torchao": {"latents": "bfloat16", "optimizer": "adamw_torch_8bit"},
}
# Without a shared expert all depends on what is trained.
EXPERTS = {"experts": 2, "top_k": 1, "shared": "none", "normalize_gates": True}
TRAIN = {"data": "stdlib-text", "batch_size": 8, "max_length": 128}


def dense(source: Source, steps: int) -> nn.Module:
    """The model that all contenders start from."""
    model = build_dense(0)
    train = TRAIN | {"what": ["*"], "steps": steps, "learning_rate": 2e-3}
    mote_quant.apply({"name": "dense", "pipeline": [{"train": train}]}, model, data=source)
    return model


def recipe(settings: dict[str, Any], rate: float, steps: int, seed: int) -> dict[str, Any]:
    """Up-cycle, and train what is routed and its routers."""
    train = TRAIN | {"what": ["routed", "router"], "steps": steps, "learning_rate": rate} | settings
    return {
        "name": "latents",
        "seed": seed,
        "bits": {"routed": "ternary"},
        "pipeline": [{"upcycle": EXPERTS}, {"train": train}],
    }


@contextmanager
def counted(found: Counter[str]) -> Iterator[None]:
    """Inside, what trains is counted at the end of each training: values, and bytes of each kind."""
    original = MoteTrainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        for parameter in (p for p in self.model.parameters() if p in optimizer.state):
            states = [s for s in optimizer.state[parameter].values() if isinstance(s, Tensor) and s.dim()]
            # A gradient has the type of its weight.
            found.update(values=parameter.numel(), weights=parameter.nbytes, gradients=parameter.nbytes)
            found.update(states=sum(state.nbytes for state in states))
        return result

    MoteTrainer.train = train
    try:
        yield
    finally:
        MoteTrainer.train = original


@contextmanager
def rounded_to_nearest(asked: bool) -> Iterator[None]:
    """Inside, if asked, updates are rounded as a plain cast rounds them."""
    original = one_by_one.round_
    if asked:
        one_by_one.round_ = lambda *_: None
    try:
        yield
    finally:
        one_by_one.round_ = original


def run(name: str, base: nn.Module, source: Source, rate: float, steps: int, seed: int) -> tuple[float, Counter[str]]:
    """Held-out loss after a training, and its memory."""
    model, found = copy.deepcopy(base), Counter[str]()
    with counted(found), rounded_to_nearest(name == NEAREST):
        pipeline.apply(recipe(CONTENDERS[name], rate, steps, seed), model, data=source)
    return held_out(model, source), found


@torch.no_grad()
def held_out(model: nn.Module, source: Source) -> float:
    """The mean loss on validation samples."""
    return mean_loss(model.eval(), source.collate, source.validation[:100])


def contender(name: str, base: nn.Module, source: Source, rate: float, asked: argparse.Namespace) -> dict[str, Any]:
    """A row of the table: bytes a trained weight, and the loss over seeds."""
    found = [run(name, base, source, rate, asked.steps, seed) for seed in asked.seeds]
    losses, sizes = [loss for loss, _ in found], found[0][1]
    memory = {key: round(sizes[key] / sizes["values"], 3) for key in ("weights", "gradients", "states")}
    return {
        "rate": rate,
        "bytes": memory | {"all": round(sum(memory.values()), 3)},
        "loss": round(mean(losses), 4),
        "sd": round(stdev(losses), 4) if len(losses) > 1 else 0.0,
        "losses": [round(loss, 4) for loss in losses],
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dense-steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 1e-4])
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--record", action="store_true", help=f"write {RESULT.name}")
    asked = parser.parse_args()
    source = open_source("stdlib-text", max_length=TRAIN["max_length"])
    base = dense(source, asked.dense_steps)
    table: dict[str, Any] = {"dense": round(held_out(base, source), 4)}
    for rate in asked.rates:
        for name in asked.only:
            try:
                table[f"{name}, rate {rate:g}"] = row = contender(name, base, source, rate, asked)
            except MissingExtraError as error:
                print(f"{name}: {error}")
                continue
            print(name, json.dumps(row), flush=True)
    if asked.record:
        RESULT.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
