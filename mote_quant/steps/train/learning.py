"""What looks after a training: a guard against spikes, validation; and what these tell the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mote_quant.hf.guard import LossGuard
from mote_quant.recipe.schema import Train
from mote_quant.steps.train.guard import open_guard
from mote_quant.steps.train.session import Session
from mote_quant.steps.train.validation import Validate
from mote_quant.steps.train.validator import Validator


@dataclass(frozen=True)
class Learning:
    """Those of `guard` and `validation` that a recipe asks for."""

    guard: LossGuard | None
    validate: Validate | None

    @classmethod
    def of(cls, config: Train, session: Session, folder: Path) -> Learning:
        """For a training in `folder`. Raises DataError without a validation split, ArtifactError."""
        guard = None if config.guard is None else open_guard(config.guard, folder)
        if config.validation is None:
            return cls(guard, None)
        samples, model = config.validation.samples, session.model
        validator = Validator(model, session.feed.source, samples, config.batch_size, config.fake_quantize)
        return cls(guard, Validate(config.validation, validator.loss, model, folder))

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What is to happen between steps."""
        return [] if self.validate is None else [self.validate]

    def end(self) -> dict[str, Any]:
        """The training is over: back to the best weights where they are wanted; notes for the report."""
        notes: dict[str, Any] = {"rollbacks": self.guard.told()} if self.guard and self.guard.rollbacks else {}
        return notes if self.validate is None else {**notes, "validation": self.validate.end()}
