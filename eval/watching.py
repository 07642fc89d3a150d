"""What looking at a training costs: `python -m eval.watching` times steps with and without `mote_quant.Figures`.

A Llama-shaped mixture trains on random tokens under HF Trainer; the two ways take turns, so that a machine that gets
slower does so for both. On a CPU it is this process's own time that counts, whatever else runs. Figures are logged
every `--every` steps, as in a run of fifty times as many. Beside the difference of the two, which a busy machine blurs,
it says how long the steps were inside of what looks: exact on a CPU, where nothing runs on when a call returns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import mote_quant
from mote_quant.watching.routing import Tally
from mote_quant.watching.speed import Speedometer

LOOKING = [
    (mote_quant.Figures, "on_pre_optimizer_step"),
    (mote_quant.Figures, "on_log"),
    (Tally, "add"),
    (Speedometer, "_count"),
]
UPCYCLE = {"name": "up", "bits": {"routed": "ternary"}, "pipeline": [{"upcycle": {"experts": 4, "top_k": 1}}]}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the beginning of each step to that of the next, logging included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """One is over."""
        began = now()
        if self._last is not None:
            self.seconds.append(began - self._last)
        self._last = began


def now() -> float:
    """Seconds; those of this process where it does the work itself."""
    return time.perf_counter() if torch.accelerator.is_available() else time.process_time()


def timed(owner: type, name: str, spent: list[float]) -> None:
    """Have `owner.name` add the seconds of every call to `spent`."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        began = now()
        result = original(*args, **kwargs)
        spent.append(now() - began)
        return result

    setattr(owner, name, call)


def build(options: argparse.Namespace) -> torch.nn.Module:
    """A mixture with random weights, of the sizes asked for."""
    sizes = {"hidden_size": options.hidden, "intermediate_size": 3 * options.hidden, "vocab_size": 4096}
    heads = {"num_attention_heads": options.hidden // 64, "num_key_value_heads": options.hidden // 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=options.layers, **sizes, **heads))
    return mote_quant.trainable(mote_quant.apply(UPCYCLE, model))


def stretch(model: torch.nn.Module, options: argparse.Namespace, watched: bool, folder: str) -> list[float]:
    """Seconds of each step of one short training."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(4096, (options.steps * options.batch, options.length), generator=generator)
    samples = [{"input_ids": row, "labels": row} for row in rows]
    fixed: dict[str, Any] = {"max_steps": options.steps, "per_device_train_batch_size": options.batch}
    fixed |= {"logging_steps": options.every, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    clock = Clock()
    callbacks = [clock, *([mote_quant.Figures(model, folder)] if watched else [])]
    arguments = TrainingArguments(folder, use_cpu=not torch.accelerator.is_available(), **fixed)
    trainer = Trainer(model, arguments, train_dataset=samples, callbacks=callbacks)
    trainer.train()
    return clock.seconds


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "hidden": 768,
        "layers": 6,
        "batch": 4,
        "length": 512,
        "every": 10,
        "steps": 21,
        "turns": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    model = build(options)
    inside: list[float] = []
    for owner, name in LOOKING:
        timed(owner, name, inside)
    # Whole stretches between two logs, so that what is done at a log is in every mean.
    means: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * options.turns):
            watched = turn % 2 == 1
            seconds = stretch(model, options, watched, folder)
            means[watched].append(statistics.fmean(seconds[-options.every * ((options.steps - 1) // options.every) :]))
            print(f"{'watched' if watched else 'alone':8} {means[watched][-1]:.4f} s a step", flush=True)
    alone, seen = (min(means[way]) for way in (False, True))
    print(f"best of {options.turns}: alone {alone:.4f} s, watched {seen:.4f} s, {100 * (seen / alone - 1):+.2f} %")
    each = sum(inside) / (options.turns * options.steps)
    print(f"inside of what looks: {1000 * each:.2f} ms a step, {100 * each / alone:.2f} %")


if __name__ == "__main__":
    main()
