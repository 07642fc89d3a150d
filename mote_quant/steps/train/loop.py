"""From the newest checkpoint to the last step, back and again where a guard says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from mote_quant.errors import SpikeError
from mote_quant.hf import checkpoint
from mote_quant.hf.guard import LossGuard
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.progress import NOTICE
from mote_quant.recipe.schema import Guard, Train
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
            # Nobody but a guard calls anything a spike.
            if guard is None or config.guard is None:
                raise
            resume = _go_back(trainer, guard, config.guard, spike)
            record("rollback", **guard.told()[-1])


def _go_back(trainer: MoteTrainer, guard: LossGuard, config: Guard, spike: SpikeError) -> Path | None:
    folder = Path(trainer.args.output_dir)
    roll_back(guard, config, spike, folder)
    # Its states are of after the spike: a new one takes up those of the checkpoint.
    trainer.optimizer = None
    return checkpoint.latest(folder)
