"""Runs `apply` in groups of forked processes: `python -m tests.company WORK SCENARIOS.json` prints JSON.

This process imports everything and computes nothing, so a fork is safe and costs no imports. A scenario is a list of
acts in one output folder; an act says how many processes, `set`s of the recipe, how they share the model, and who dies
at which training step. The answer has what each process said at its end, and what lies in the folder.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import fully_shard  # noqa: F401  (imported before any fork)
from transformers import Trainer, TrainingArguments  # noqa: F401

from mote_quant import pipeline
from mote_quant.errors import MoteError
from mote_quant.hf import checkpoint
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe import load
from tests import pico
from tests.pico_moe import PICO_MOE
from tests.sources import source_for

FAMILIES: dict[str, Any] = {**pico.PICO, "mixtral": PICO_MOE["Mixtral"]}

RECIPE: dict[str, Any] = {
    "name": "company",
    "bits": {"routed": "ternary", "shared": {"format": "int4", "group_size": 16}, "router": "float32"},
    "pipeline": [
        {"upcycle": {"noise": 0.3, "router_std": 0.3}},
        {
            "train": {
                "what": ["routed", "router"],
                "data": "pico",
                "steps": 6,
                "batch_size": 4,
                "learning_rate": 2e-3,
                "balance_loss": 0.05,
                "z_loss": 0.01,
                "checkpoint_every": 2,
                "warmup": 0.0,
            }
        },
        {"quantize": {}},
    ],
}


def work(folder: Path, act: dict[str, Any]) -> dict[str, Any]:
    """One process's life; what it has to say."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rank = int(os.environ.get("RANK", 0))
    torch.manual_seed(1 + rank)
    notices: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notices.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mote_quant").addHandler(handler)
    logging.getLogger("mote_quant").setLevel(logging.INFO)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[act.get("family", "llama")]()
    os.chdir(folder.parent)
    made = load(act.get("recipe", RECIPE), [f"{key}={json.dumps(value)}" for key, value in act.get("set", {}).items()])
    dies = act["dies"]["at"] if act.get("dies", {}).get("rank") == rank else None
    options = pipeline.Options(sharding=act.get("sharding", "ddp"))
    if act.get("dies_writing") == rank:
        checkpoint._write_own = lambda *given: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    if "spike" in act:
        _spike_at(act["spike"])
    if dies is not None:
        _die_at(dies)
    gathered = _watch_gathering() if "gathering" in act else {}
    try:
        pipeline.apply(made, model, data=source_for(model, **act.get("data", {})), output=folder, options=options)
    except MoteError as error:
        return {"error": type(error).__name__, "message": str(error), "notices": notices}
    seen = {name: str(p.dtype) for name, p in model.named_parameters() if p.is_meta}
    latent = any(isinstance(module, QatLinear) for module in model.modules())
    return {"notices": notices, "gathered": gathered, "meta": seen, "latent": latent}


def _watch_gathering() -> dict[str, int]:
    """Counts the numbers of whole weights that are alive at a time while sharded ones come back."""
    from mote_quant.parallel import gathering

    original, counts = gathering.whole, {"alive": 0, "most": 0, "all": 0}

    def whole(tensor: Any) -> Any:
        found = original(tensor)
        counts["alive"] += found.numel()
        counts["all"] += found.numel()
        counts["most"] = max(counts["most"], counts["alive"])
        weakref.finalize(found, lambda size: counts.update(alive=counts["alive"] - size), found.numel())
        return found

    gathering.whole = whole
    return counts


def _spike_at(step: int) -> None:
    """Have the loss be a hundredfold after `step` steps, the first time they are done."""
    from mote_quant.hf.guard import LossGuard

    original, waiting = LossGuard.add, [step]

    def add(self: Any, loss: float) -> None:
        spikes = bool(waiting) and len(self._losses) == min(waiting[0], self._window) and not self.rollbacks
        original(self, 100 * loss if spikes else loss)

    LossGuard.add = add  # type: ignore[method-assign]


def _die_at(step: int) -> None:
    from mote_quant.hf.trainer import MoteTrainer

    original = MoteTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    MoteTrainer.training_step = training_step  # type: ignore[method-assign]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def play(folder: Path, act: dict[str, Any]) -> list[Any]:
    """Fork the processes of an act; what each says, or the signal (negative) or status it ended with."""
    world, port = act.get("world", 1), free_port()
    children, ends = [], []
    for rank in range(world):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            if world > 1:
                found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ |= {name: str(value) for name, value in found.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _live(folder, act, write)
        os.close(write)
        children.append(child)
        ends.append(read)
    told = []
    for child, end in zip(children, ends, strict=True):
        with os.fdopen(end) as file:
            text = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.append(json.loads(text) if text else status)
    return told


def _live(folder: Path, act: dict[str, Any], write: int) -> None:
    try:
        said = work(folder, act)
        with os.fdopen(write, "w") as file:
            file.write(json.dumps(said))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """See the module's docstring."""
    work_folder, scenarios = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    teacher = pico.PICO["llama"](seed=7)
    teacher.save_pretrained(work_folder / "teacher")
    answers = {name: [play(work_folder / name, act) for act in acts] for name, acts in scenarios.items()}
    print("ANSWERS" + json.dumps(answers))  # noqa: T201


if __name__ == "__main__":
    main()
