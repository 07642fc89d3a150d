"""What happens between training steps: the ternary ramp, what is kept through a step, progress, routing, distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import TrainerCallback

from mote_quant.hf.distillation import Distillation
from mote_quant.moe import blocks
from mote_quant.qat.keeping import keeping
from mote_quant.qat.linear import QatLinear
from mote_quant.steps.base import Progress


class Ramp(TrainerCallback):  # type: ignore[misc]
    """Blends quantized weights in over the first `steps` steps: lambda goes linearly from 0 to 1.

    With None it stays 0 to the end: the control that trains in full precision and is rounded afterwards.
    """

    def __init__(self, model: nn.Module, steps: int | None) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, QatLinear)]
        self._steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set lambda for the coming step."""
        self._set(0.0 if self._steps is None else min(1.0, state.global_step / self._steps))

    def end(self) -> None:
        """Fully quantized, however the training ended."""
        self._set(1.0)
        for layer in self._layers:
            # A learned scale saw none of that training: it starts from what the weights have become.
            if self._steps is None and layer.weight.requires_grad:
                layer.fit_scale()

    def _set(self, strength: float) -> None:
        for layer in self._layers:
            layer.strength = strength


class Accumulation(TrainerCallback):  # type: ignore[misc]
    """Has weights quantized once for all of a step: its micro-batches, and layers that are computed again in backward.

    They stand still until the optimizer moves them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._window = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step that was broken off is over too."""
        self.end()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first micro-batch of a step is about to run."""
        self._window.enter_context(keeping(self._model))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last one is done."""
        self.end()

    def end(self) -> None:
        """However the training ended."""
        self._window.close()


class Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress each step and adds the mean balance (1.0 = uniform) to the losses that Trainer logs."""

    def __init__(self, model: nn.Module, progress: Progress) -> None:
        self._blocks = blocks(model)
        self._progress = progress
        self._history: list[dict[str, float]] = []
        self._began = False

    @property
    def curve(self) -> list[dict[str, float]]:
        """The logged losses, those from before a resumed run was interrupted included."""
        keys = ("step", "loss", "balance", "kl")
        logged = [entry for entry in self._history if "loss" in entry]
        return [{key: float(entry[key]) for key in keys if key in entry} for entry in logged]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Announce the stretch, or what is done again of it."""
        self._history = state.log_history
        title = f"training again from step {state.global_step}" if self._began else "training"
        self._progress.start(title, state.max_steps)
        self._began = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step is done; its loss, where it is to be logged, comes later."""
        if not control.should_log:
            self._progress.advance(state.global_step, **_shown(self._history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Trainer has just entered `logs` into its history, which its checkpoints keep."""
        if logs and "loss" in logs:
            state.log_history[-1] |= self._balance()
            self._progress.advance(state.global_step, **_shown(self._history))

    def routing(self) -> dict[str, dict[str, Any]]:
        """Per mixture layer: expert load, balance and routing entropy of the last batch."""
        seen = {name: block.routing for name, block in self._blocks.items() if block.routing is not None}
        return {
            name: {"load": r.load.tolist(), "balance": float(r.balance), "entropy": float(r.entropy)}
            for name, r in seen.items()
        }

    def _balance(self) -> dict[str, float]:
        values = [float(block.balance_of_all) for block in self._blocks.values() if block.routing is not None]
        return {"balance": sum(values) / len(values)} if values else {}


def _shown(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A few figures of what was last logged; the speed is that of the stretch before, where this one's is not known."""
    last: Mapping[str, Any] = next((entry for entry in reversed(history) if "loss" in entry), {})
    speeds = (entry["figures"].get("tokens_per_second") for entry in reversed(history) if "figures" in entry)
    found = {"loss": last.get("loss"), "balance": last.get("balance"), "tokens/s": next(speeds, None)}
    return {name: float(value) for name, value in found.items() if value is not None}


class Distance(TrainerCallback):  # type: ignore[misc]
    """Adds `kl`, the mean distance from the teacher since the last entry, to the losses that Trainer logs."""

    def __init__(self, distillation: Distillation) -> None:
        self._distillation = distillation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was measured before, in a stretch that is undone or a search, does not count."""
        self._distillation.mean()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Trainer has just entered `logs` into its history, which its checkpoints keep."""
        if logs and "loss" in logs:
            # A step that a guard leaves out has none, nor a loss of its own: the last one stands in.
            before = next((entry["kl"] for entry in reversed(state.log_history) if "kl" in entry), 0.0)
            state.log_history[-1] |= {"kl": self._distillation.mean() or before}
