"""Going back before a loss spike: what is written down, which checkpoint is good, what is different afterwards."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from mote_quant.errors import ArtifactError, SpikeError, TrainingError
from mote_quant.hf import checkpoint
from mote_quant.hf.guard import LossGuard, Rollback
from mote_quant.hf.integrity import keep
from mote_quant.parallel.sharding import norms
from mote_quant.progress import NOTICE
from mote_quant.ranks import by_main, mean
from mote_quant.recipe.schema import Guard

_log = logging.getLogger(__name__)
_FILE = "guard.json"


class Watchman(TrainerCallback):  # type: ignore[misc]
    """Has `guard` judge each step before the weights move; sees to a checkpoint to go back to (`save`), and rates."""

    def __init__(self, guard: LossGuard, save: Callable[[], None]) -> None:
        self._guard = guard
        self._save = save

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """There is something to go back to from the first step on; rates are what they are after the last rollback."""
        if not state.global_step:
            self._save()
        if self._guard.rate != 1.0:
            _cool(kwargs["optimizer"], kwargs["lr_scheduler"], self._guard.rate)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All micro-batches of the step have run."""
        self._guard.judge(state.global_step, _finite_gradients(kwargs["model"]))


def _finite_gradients(model: nn.Module) -> bool:
    """Of all processes: weights that one of them spoils are soon those of all."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # Gradients of weights that every process has whole are not averaged yet: each may have its own.
    own = norms([gradients]).to(next(model.parameters()).device)
    return bool(torch.isfinite(mean(own)).all())


def _cool(optimizer: Any, scheduler: Any, rate: float) -> None:
    """All rates of the schedule, times `rate`: always of what they were at first, however often this is done."""
    scheduler.base_lrs = [group["initial_lr"] * rate for group in optimizer.param_groups]
    for group, base, shape in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * shape(scheduler.last_epoch)


def open_guard(config: Guard, folder: Path) -> LossGuard:
    """The guard of the training in `folder`, which may have gone back before. ArtifactError for a damaged record."""
    path = folder / _FILE
    if not path.exists():
        return LossGuard(config.factor, config.window)
    try:
        rollbacks = [Rollback(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete the folder {folder} to redo this step") from error
    return LossGuard(config.factor, config.window, rollbacks)


def roll_back(guard: LossGuard, config: Guard, spike: SpikeError, folder: Path) -> None:
    """Have the training in `folder` go on from before `spike`. TrainingError once that was tried often enough."""
    if len(guard.rollbacks) >= config.retries:
        raise TrainingError(
            f"{spike.message}, and {len(guard.rollbacks)} rollbacks did not help: lower learning_rate, add warmup, or "
            "check the data. The last good checkpoint is kept; change the recipe and use a new output folder"
        ) from spike
    # First the bad checkpoints go, then it is written down: killed in between, the same spike leads here again.
    good = by_main(lambda: _keep_good(folder, spike.step))
    loss = spike.loss if math.isfinite(spike.loss) else None
    guard.rollbacks.append(Rollback(spike.step, loss, spike.usual, good, guard.rate * config.cooling))
    by_main(lambda: keep(folder / _FILE, json.dumps(guard.told())))
    _log.log(NOTICE, "%s: back to step %d, rates x %.3g, without that step", spike.message, good, guard.rate)


def _keep_good(folder: Path, spike: int) -> int:
    """Drop the checkpoints whose weights nobody has seen do well; the step of the newest that is left.

    The first loss of a checkpoint's weights is that of the step it is named after.
    """
    found = checkpoint.whole(folder)
    good = max((step for step in found if step < spike), default=0)
    for step, path in found.items():
        if step > good:
            aside = path.with_name(f".{path.name}.part")
            os.replace(path, aside)
            shutil.rmtree(aside, ignore_errors=True)
    return good
