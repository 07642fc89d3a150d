"""From the newest checkpoint to the last step, back and again where a guard says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mote_quant.errors import SpikeError
from mote_quant.hf import checkpoint
from mote_quant.hf.guard import LossGuard
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.progress import NOTICE
from mote_quant.recipe.schema import Train
from mote_quant.steps.train.guard import Watchman, roll_back

_log = logging.getLogger(__name__)


def carry_out(
    trainer: MoteTrainer, config: Train, guard: LossGuard | None, record: Callable[..., None], folder: Path | None
) -> None:
    """Train to the last step; `record` is told of rollbacks. Raises TrainingError, SaveError."""
    if guard is not None:
        trainer.add_callback(Watchman(guard, trainer.save_checkpoint))
    resume = checkpoint.latest(folder)
    if resume is not None:
        _log.log(NOTICE, "going on after step %s of %d", resume.name.rpartition("-")[2], config.steps)
    while True:
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
            return
        except SpikeError as spike:
            resume = _go_back(trainer, config, guard, spike)
            record("rollback", **_latest(guard))


def _go_back(trainer: MoteTrainer, config: Train, guard: LossGuard | None, spike: SpikeError) -> Path | None:
    if guard is None or config.guard is None:
        raise spike
    folder = Path(trainer.args.output_dir)
    roll_back(guard, config.guard, spike, folder)
    # Its states are of after the spike: a new one takes up those of the checkpoint.
    trainer.optimizer = None
    return checkpoint.latest(folder)


def _latest(guard: LossGuard | None) -> dict[str, Any]:
    return guard.told()[-1] if guard is not None else {}
