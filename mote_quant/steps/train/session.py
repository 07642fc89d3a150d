"""A model and all that its training needs, whatever the settings: a search for a learning rate trains with many."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from mote_quant.data.feed import Feed
from mote_quant.hf.distillation import Distillation
from mote_quant.hf.guard import LossGuard
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.parallel import Spread, adapt, of_kind
from mote_quant.ranks import temporary_folder
from mote_quant.recipe.schema import Train
from mote_quant.steps.base import Context
from mote_quant.steps.train.arguments import arguments_of
from mote_quant.steps.train.callbacks import Accumulation, Distance, Ramp
from mote_quant.steps.train.optimizer import build_optimizer
from mote_quant.steps.train.rates import parameter_groups
from mote_quant.steps.train.validator import Validator


@dataclass(frozen=True)
class Session:
    """The model where it trains, what of it does (`chosen`: name -> role), what it sees and who teaches it."""

    devices: Spread
    context: Context
    chosen: Mapping[str, str]
    feed: Feed
    distillation: Distillation | None

    @property
    def model(self) -> nn.Module:
        """The one that is trained: the sharded twin, where there is one."""
        return self.devices.model

    def trainer(
        self,
        config: Train,
        folder: Path,
        callbacks: Sequence[TrainerCallback],
        guard: LossGuard | None = None,
        keeps: bool = False,
    ) -> MoteTrainer:
        """A Trainer as `config` wants it; with `keeps` (or a `guard`) it writes checkpoints to `folder`."""
        schedule = self.feed.schedule(config.steps)
        arguments = arguments_of(config, self.context.seed, folder, keeps=keeps or guard is not None)

        def optimizer(decayed: Collection[str]) -> torch.optim.Optimizer:
            groups = of_kind(parameter_groups(self.model, self.chosen, config, decayed))
            return build_optimizer(groups, config, self.model, self.context.seed)

        made = MoteTrainer(
            self.model, arguments, schedule, self.feed.collate, optimizer, callbacks, self.distillation, guard
        )
        adapt(made, self.devices)
        return made

    @contextmanager
    def between_steps(self, config: Train) -> Iterator[list[TrainerCallback]]:
        """What has to happen between the steps of a training; ended however that ends."""
        ramp, accumulation = Ramp(self.model, _ramp_steps(config)), Accumulation(self.model)
        wanted = {
            ramp: config.ternary_ramp or not config.fake_quantize,
            accumulation: config.gradient_accumulation > 1 or config.gradient_checkpointing,
        }
        distance = [] if self.distillation is None else [Distance(self.distillation)]
        try:
            yield [*(callback for callback, is_wanted in wanted.items() if is_wanted), *distance]
        finally:
            accumulation.end()
            ramp.end()

    def attempt(self, config: Train, samples: int) -> float:
        """The loss on so many validation samples after a short training as `config` has it."""
        validator = Validator(self.model, self.feed.source, samples, config.batch_size, config.fake_quantize)
        with temporary_folder() as folder, self.between_steps(config) as callbacks:
            self.trainer(config, folder, callbacks).train()
            return validator.loss()


def _ramp_steps(config: Train) -> int | None:
    return max(1, round(config.steps * config.ternary_ramp)) if config.fake_quantize else None
