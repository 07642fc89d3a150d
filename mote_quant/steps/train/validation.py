"""Validation while a training runs: stopping early, and ending with the best weights."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from mote_quant.errors import ArtifactError
from mote_quant.hf import checkpoint
from mote_quant.hf.training_state import restore_model, trained
from mote_quant.progress import NOTICE
from mote_quant.ranks import by_main
from mote_quant.recipe.schema import Validation

_log = logging.getLogger(__name__)
KEY = "validation"
_BEST = "best-"


class Validate(TrainerCallback):  # type: ignore[misc]
    """Validates, keeps the best weights in `folder`, stops when nothing gets better. Remembers through the history that
    Trainer's checkpoints keep."""

    def __init__(self, config: Validation, loss: Callable[[], float], model: nn.Module, folder: Path) -> None:
        self._config = config
        self._loss = loss
        self._model = model
        self._folder = folder
        self._history: list[dict[str, Any]] = []
        self.stopped: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new history, or that of a checkpoint."""
        self._history = state.log_history

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step is done."""
        step = state.global_step
        if step % self._config.every and step < state.max_steps:
            return
        self._history.append({"step": step, KEY: self._loss()})
        best = self.best()
        if self._config.keep_best and best["step"] == step:
            self._keep(step)
        patience = self._config.patience
        if patience and self._since(best["step"]) >= patience and step < state.max_steps:
            self._stop(step, best, control)

    def _stop(self, step: int, best: dict[str, Any], control: Any) -> None:
        self.stopped = step
        control.should_training_stop = True
        # A run resumed from a checkpoint of this moment would train on; from the one before it comes here again.
        control.should_save = False
        _log.log(NOTICE, "stopped after step %d: lowest validation loss after step %d", step, best["step"])

    @property
    def curve(self) -> list[dict[str, float]]:
        """Every validation so far: step and loss."""
        return [{"step": entry["step"], "loss": entry[KEY]} for entry in self._history if KEY in entry]

    def best(self, until: int | None = None) -> dict[str, Any]:
        """The first of the lowest losses (up to step `until`), with its step; a loss that is NaN is never the best."""
        known = [entry for entry in self.curve if until is None or entry["step"] <= until]
        return min(known, key=lambda entry: (entry["loss"] != entry["loss"], entry["loss"], entry["step"]))

    def _since(self, step: int) -> int:
        return sum(entry["step"] > step for entry in self.curve)

    def _keep(self, step: int) -> None:
        weights = {f"model.{name}": parameter.detach() for name, parameter in trained(self._model).items()}
        checkpoint.write(self._place(step), step, checkpoint.Checkpoint(weights, {}), {})
        by_main(self._drop_beaten)

    def _drop_beaten(self) -> None:
        """What no checkpoint calls the best any more: a training that goes back to one may end with an older best."""
        steps = [step for step in checkpoint.whole(self._folder) if any(e["step"] <= step for e in self.curve)]
        needed = {self.best()["step"], *(self.best(step)["step"] for step in steps)}
        for path in self._folder.glob(f"{_BEST}*"):
            if path not in {self._place(step) for step in needed}:
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self._folder / f"{_BEST}{step}"

    def end(self) -> dict[str, Any]:
        """Go back to the best weights where they are kept; what the report says."""
        best = self.best()
        if self._config.keep_best and best["step"] != self.curve[-1]["step"]:
            place = self._place(best["step"])
            found = checkpoint.latest(place)
            if found is None:
                raise ArtifactError(
                    f"{place} is missing, the weights of step {best['step']}; delete {self._folder} to redo this step"
                )
            restore_model(checkpoint.read(found), self._model)
            _log.log(NOTICE, "the weights are those of step %d, which validated best", best["step"])
        return {"curve": self.curve, "best": best, "stopped": self.stopped, "kept_best": self._config.keep_best}


def beside(curve: list[dict[str, float]], validated: list[dict[str, float]]) -> list[dict[str, float]]:
    """The training curve with `validation` where a step has both."""
    losses = {entry["step"]: entry["loss"] for entry in validated}
    return [entry | ({KEY: losses[entry["step"]]} if entry["step"] in losses else {}) for entry in curve]
