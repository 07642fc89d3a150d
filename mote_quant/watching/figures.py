"""The callback that looks at a training each time its losses are logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from mote_quant.anatomy.roles import roles
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import ranks
from mote_quant.watching.alarm import PATIENCE, SHARE, dead_experts
from mote_quant.watching.codes import CodeMeter
from mote_quant.watching.gradients import before_clipping, norms_by_role
from mote_quant.watching.places import layer_of
from mote_quant.watching.routing import RoutingMeter
from mote_quant.watching.sinks import Sink, check_sinks, open_sinks
from mote_quant.watching.speed import Speedometer

_log = logging.getLogger(__name__)
_PLAIN = ("step", "loss", "learning_rate", "grad_norm", "balance", "kl")


class Figures(TrainerCallback):  # type: ignore[misc]
    """A callback of any HF `Trainer` for a `model` of ours, that sees more than its losses.

    Whenever those are logged it adds `figures` to the entry in `state.log_history`: per layer the expert load, balance
    and routing entropy since the last entry, the share of zeros and of codes that changed, gradient norms per role
    (before clipping), tokens a second and seconds left. With a `folder` they go to `metrics.jsonl` there, too, and to
    what `log_to` names (`tensorboard`, `wandb`). An expert that hardly any token reaches any more is warned of, once.
    Between entries nothing is computed but sums over router outputs.
    """

    def __init__(
        self, model: nn.Module, folder: str | Path | None = None, log_to: Sequence[str] = (), part: str = "train"
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        check_sinks(log_to, self._folder)
        self._log_to, self._part = tuple(log_to), part
        self._model, self._role_of = model, roles(model)
        self._routing, self._codes, self._speed = RoutingMeter(model), CodeMeter(model, {}), Speedometer(model)
        self._norms: dict[str, float] = {}
        self._sinks: list[Sink] = []
        self._history: list[dict[str, Any]] = []
        self._warned: dict[tuple[str, int], int] = {}

    @property
    def curve(self) -> list[dict[str, Any]]:
        """The entries with figures, with those from before a resumed run was interrupted."""
        return [entry for entry in self._history if "figures" in entry]

    @property
    def dead(self) -> list[dict[str, Any]]:
        """The experts that were warned of: `layer`, `expert`, `step`."""
        return [{"layer": layer, "expert": expert, "step": step} for (layer, expert), step in self._warned.items()]

    def notes(self) -> dict[str, Any]:
        """For a report: `figures`, an entry of plain numbers for each point of the curve, and `dead_experts`."""
        points = [{key: entry[key] for key in _PLAIN if key in entry} | entry["figures"] for entry in self.curve]
        return {"figures": points} | ({"dead_experts": self.dead} if self.dead else {})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to look, or begin again."""
        self.end()
        self._history = state.log_history
        self._warned = {}
        for count in range(1, len(self.curve) + 1):
            self._remember(self.curve[:count])
        if ranks().main:
            self._sinks = open_sinks(self._log_to, self._folder, self._part, self.curve)
        self._routing.start()
        self._codes = CodeMeter(self._model, self._places())
        self._speed.start(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are whole, and clipped; only those of a step that will be logged are looked at."""
        if _is_logged(state.global_step + 1, args, state):
            named: dict[str, list[nn.Parameter]] = {}
            for name, parameter in self._model.named_parameters():
                if parameter.requires_grad:
                    named.setdefault(self._role_of(name), []).append(parameter)
            self._norms = norms_by_role(named)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Trainer has just entered `logs` into its history, which its checkpoints keep."""
        if not logs or "loss" not in logs:
            return
        entry = state.log_history[-1]
        entry["figures"] = self._look(state, logs.get("grad_norm"))
        for layer, expert in self._remember(self.curve):
            _log.warning(
                "expert %d of %s got less than %g of its fair share of tokens in the last %d stretches: raise "
                "balance_loss, or take fewer experts",
                *(expert, layer, SHARE, PATIENCE),
            )
        for sink in self._sinks:
            sink.write(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it was."""
        self.end()

    def end(self) -> None:
        """However the training ended."""
        self._routing.stop()
        self._speed.stop()
        while self._sinks:
            self._sinks.pop().close()

    def _places(self) -> dict[str, tuple[str, str]]:
        """Role and layer of each module that holds latent weights and trains; adapters may have come since."""
        trained = [n for n, m in self._model.named_modules() if isinstance(m, QatLinear) and m.weight.requires_grad]
        return {name: (self._role_of(name), layer_of(name)) for name in trained}

    def _look(self, state: Any, total: float | None) -> dict[str, Any]:
        found = {
            "routing": self._routing.take(),
            "codes": self._codes.take(),
            "gradients": before_clipping(self._norms, total),
        }
        self._norms = {}
        return {name: value for name, value in found.items() if value} | self._speed.take(
            state.global_step, state.max_steps
        )

    def _remember(self, curve: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
        """The experts that are dead after the last of `curve`, and were not before."""
        found = dead_experts([entry["figures"].get("routing", {}) for entry in curve[-PATIENCE:]])
        new = [place for place in found if place not in self._warned]
        self._warned |= dict.fromkeys(new, curve[-1]["step"] if curve else 0)
        return new


def _is_logged(step: int, args: Any, state: Any) -> bool:
    return bool(step % max(1, state.logging_steps) == 0 or (step == 1 and args.logging_first_step))
