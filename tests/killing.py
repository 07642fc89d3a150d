"""Runs `apply` in forked children and kills them: `python -m tests.killing WORK SCENARIOS.json [MODE]` prints JSON.

This process imports everything and computes nothing, so a fork is safe and costs no imports. A scenario is a list of
bombs: each arms one child; after them a child without a bomb finishes the run. Its weight file's sha256 is the answer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer, TrainingArguments  # noqa: F401  (imported before any fork)

from mote_quant import pipeline
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.hf.integrity import sha256
from mote_quant.journal import Run
from tests import pico
from tests.sources import source_for

RECIPE: dict[str, Any] = {
    "name": "killed",
    "bits": {
        "routed": {"format": "ternary", "granularity": "channel", "scales": "learned"},
        "shared": {"format": "int4", "group_size": 16, "method": "gptq"},
        "attention": "int8",
    },
    "pipeline": [
        {"train": {"what": ["attention"], "data": "pico", "steps": 3, "batch_size": 2, "checkpoint_every": 2}},
        {"upcycle": {"noise": 0.1, "combine": "zero_init"}},
        {
            "train": {
                "what": ["routed", "router"],
                "data": "pico",
                "steps": 12,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "checkpoint_every": 2,
                "ternary_ramp": 0.5,
            }
        },
        {"quantize": {"calibration": {"data": "pico", "samples": 8}}},
    ],
}

# From a model folder, a stage at a time.
STREAMED: dict[str, Any] = {
    "name": "streamed",
    "bits": RECIPE["bits"],
    "pipeline": [RECIPE["pipeline"][1], RECIPE["pipeline"][3]],
}


# Everything a training may remember: places in streams, latents in 16 bits, what a guard and a validation have seen.
RICH: dict[str, Any] = {
    "name": "rich",
    "bits": {"routed": "ternary", "shared": {"format": "int4", "group_size": 16}},
    "pipeline": [
        {"upcycle": {"noise": 0.1}},
        {
            "train": {
                "what": ["routed", "router", "shared"],
                "data": {"one.jsonl": 2.0, "two.jsonl": 1.0},
                "stream": True,
                "shuffle_buffer": 8,
                "validation_rows": 4,
                "max_length": 32,
                "pack": True,
                "steps": 12,
                "batch_size": 2,
                "gradient_accumulation": 2,
                "gradient_checkpointing": True,
                "latents": "bfloat16",
                "learning_rates": {"router": 3e-4},
                "guard": {"window": 4},
                "validation": {"every": 4, "samples": 4},
                "search": {"learning_rates": [1e-3, 3e-3], "steps": 2, "samples": 2},
                "distill": {"teacher": "dense", "hidden": 0.5, "cache": "cache", "weight": 0.5},
                "checkpoint_every": 2,
                "ternary_ramp": 0.5,
            }
        },
        {"quantize": {}},
    ],
}
MODES = ("whole", "streamed", "rich")


def die(*args: Any, **kwargs: Any) -> None:
    """SIGKILL to ourselves: no handler, no finally, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class Bomb:
    """A `Progress` that kills at unit `at` of the `nth` stretch called `title`."""

    def __init__(self, title: str = "", at: int = 0, nth: int = 1) -> None:
        self._title, self._at, self._left = title, at, nth

    def start(self, title: str, total: int) -> None:
        self._left -= title == self._title
        self._now = title

    def advance(self, done: int, **figures: float) -> None:
        if self._now == self._title and self._left == 0 and done == self._at:
            self.go_off()

    def go_off(self) -> None:
        """It is time."""
        die()


def before_call(owner: Any, name: str, nth: int) -> None:
    """Die just before the `nth` call of `owner.name`."""
    original, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            die()
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def while_writing(name: str) -> None:
    """Die when `DIR/run/<name>` is half written under its temporary name."""
    original = Run.write

    def half(self: Run, file: str, text: str) -> None:
        if file == name:
            (self.folder / f".{file}.part").write_text(text[: len(text) // 2])
            die()
        original(self, file, text)

    Run.write = half  # type: ignore[method-assign]


def arm(bomb: dict[str, Any]) -> Bomb:
    """Install what `bomb` describes; returns the progress to run under."""
    if "sleep" in bomb:
        threading.Thread(target=lambda: (time.sleep(bomb["sleep"]), die()), daemon=True).start()
    if "call" in bomb:
        owner = {"os": os, "shutil": shutil, "Run": Run, "pipeline": pipeline}[bomb["owner"]]
        before_call(owner, bomb["call"], bomb["nth"])
    if "writing" in bomb:
        while_writing(bomb["writing"])
    return Bomb(**bomb["progress"]) if "progress" in bomb else Bomb()


def rich(folder: Path, options: pipeline.Options) -> None:
    """The recipe RICH, on texts of the standard library that lie beside `folder` with the dense model."""
    os.chdir(folder.parent)
    processor = build_processor()
    if not Path("dense").exists():
        pico.PICO["gpt2"](vocab_size=len(processor), resid_pdrop=0.2).save_pretrained("dense")
        processor.save_pretrained("dense")
        for name, module in (("one", json), ("two", random)):
            lines = [line for line in Path(str(module.__file__)).read_text().splitlines() if len(line) > 30][:60]
            Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    pipeline.apply(RICH, "dense", output=folder, options=options)


def run(folder: Path, bomb: dict[str, Any], mode: str) -> None:
    """One child's life."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    random.seed()  # what the process draws by itself must not matter
    torch.manual_seed(random.randrange(2**31))
    options = pipeline.Options(arm(bomb))
    if mode == "rich":
        rich(folder, options)
        return
    model = pico.PICO["gpt2"](resid_pdrop=0.2)
    data = source_for(model)
    if mode == "streamed":
        pipeline.apply(STREAMED, folder.parent / "dense", data=data, output=folder, options=options)
    else:
        pipeline.apply(RECIPE, model, data=data, output=folder, options=options)


def child(folder: Path, bomb: dict[str, Any], mode: str) -> int:
    """Fork, run, and return the status: 0, or minus the signal, or 1 with a traceback on stderr."""
    process = os.fork()
    if process == 0:
        try:
            run(folder, bomb, mode)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def play(folder: Path, bombs: list[dict[str, Any]], mode: str = MODES[0]) -> dict[str, Any]:
    """Kill, resume, ... finish; the statuses, the hash, and whether config.json is the same too."""
    statuses = [child(folder, bomb, mode) for bomb in bombs]
    statuses.append(child(folder, {}, mode))
    if statuses[-1]:
        return {"statuses": statuses}
    left = [
        str(path.relative_to(folder)) for path in folder.rglob("*") if ".part" in path.name or path.name == ".saving"
    ]
    left += [str(path) for kept in ("steps", "stages") for path in (folder / "run").glob(f"{kept}/*")]
    weights = sorted(path.name for path in folder.glob("*.safetensors*"))
    files = {name: sha256(folder / name) for name in [*weights, "run/plan.json"]}
    files["config.json"] = settled(folder)
    report = json.loads((folder / "run" / "report.json").read_text())
    curve = [
        [step["step"], step["tokens"], [point["step"] for point in step["curve"]]]
        for step in report["steps"]
        if "curve" in step
    ]
    return {"statuses": statuses, "files": files, "left": left, "curve": curve}


def settled(folder: Path) -> str:
    """`config.json` without the commit of this checkout, which may be another by the time a test compares."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["provenance"].pop("commit")
    return json.dumps(config, sort_keys=True)


def main() -> None:
    """See the module's docstring."""
    work, scenarios = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    mode = next(iter(sys.argv[3:]), MODES[0])
    answers = {}
    for name, bombs in scenarios.items():
        started = time.monotonic()
        answers[name] = play(work / name.replace(" ", "-"), bombs, mode)
        answers[name]["seconds"] = round(time.monotonic() - started, 2)
    print("ANSWERS" + json.dumps(answers))  # noqa: T201


if __name__ == "__main__":
    main()
