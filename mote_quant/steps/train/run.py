"""The `train` step: HF Trainer underneath, only what the recipe names moves, resumable to the same bits."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from mote_quant.data.schedule import Schedule
from mote_quant.data.source import Source
from mote_quant.errors import DataError
from mote_quant.hf import checkpoint
from mote_quant.hf.attach import attach
from mote_quant.hf.distillation import Distillation
from mote_quant.hf.latents import make_latent
from mote_quant.hf.teacher import open_teacher
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.moe import blocks
from mote_quant.progress import NOTICE
from mote_quant.recipe.schema import Distill, Train
from mote_quant.steps.base import Context
from mote_quant.steps.train.arguments import arguments_of
from mote_quant.steps.train.callbacks import Accumulation, Distance, Ramp, Watch
from mote_quant.steps.train.optimizer import build_optimizer
from mote_quant.steps.train.rates import parameter_groups
from mote_quant.steps.train.selection import by_role, trainable_names
from mote_quant.steps.train.surroundings import surroundings

_log = logging.getLogger(__name__)


def run(model: nn.Module, config: Train, context: Context) -> nn.Module:
    """Train `model` in place; notes what was trained and frozen, the loss curve, tokens and seconds."""
    source = _samples(config, context)
    if make_latent(model, context.formats):
        attach(model)
    chosen = trainable_names(model, config.what)
    context.notes |= by_role(model, chosen)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(surroundings(model, config, chosen))
        distillation = None if config.distill is None else _distillation(config.distill, model)
        watch = Watch(model, context.progress)
        callbacks = [watch, *_callbacks(model, config, distillation, stack)]
        folder = context.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trainer = _trainer(model, config, context, chosen, source, folder, callbacks, distillation)
        _carry_out(trainer, config, context)
    context.notes |= {"tokens": trainer.tokens, "curve": watch.curve, "routing": watch.routing()}
    context.notes |= _taught(config, watch.curve) | ({"compile": True} if config.compile else {})
    context.notes["seconds"] = round(time.monotonic() - started, 3)
    if blocks(model):
        attach(model, balance_loss=config.balance_loss, z_loss=config.z_loss)
    model.eval()
    return model


def _carry_out(trainer: MoteTrainer, config: Train, context: Context) -> None:
    """To the last step, from the newest checkpoint where there is one."""
    resume = checkpoint.latest(context.folder)
    if resume is not None:
        _log.log(NOTICE, "going on after step %s of %d", resume.name.rpartition("-")[2], config.steps)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))


def _trainer(
    model: nn.Module,
    config: Train,
    context: Context,
    chosen: Mapping[str, str],
    source: Source,
    folder: Path,
    callbacks: list[TrainerCallback],
    distillation: Distillation | None,
) -> MoteTrainer:
    samples = config.steps * config.batch_size * config.gradient_accumulation
    schedule = Schedule(source.train, samples, context.seed)
    arguments = arguments_of(config, context.seed, folder, keeps=context.folder is not None)

    def optimizer(decayed: Collection[str]) -> torch.optim.Optimizer:
        return build_optimizer(parameter_groups(model, chosen, config, decayed), config)

    return MoteTrainer(model, arguments, schedule, source.collate, optimizer, callbacks, distillation)


def _callbacks(
    model: nn.Module, config: Train, distillation: Distillation | None, stack: ExitStack
) -> list[TrainerCallback]:
    """What else happens between steps; `stack` ends it."""
    callbacks: list[TrainerCallback] = []
    ramp, accumulation = Ramp(model, _ramp_steps(config)), Accumulation(model)
    stack.callback(ramp.end)
    stack.callback(accumulation.end)
    if config.ternary_ramp or not config.fake_quantize:
        callbacks.append(ramp)
    if config.gradient_accumulation > 1:
        callbacks.append(accumulation)
    if distillation is not None:
        callbacks.append(Distance(distillation))
    return callbacks


def _samples(config: Train, context: Context) -> Source:
    source = context.open_data(config.data, config.max_length)
    if not len(source.train):
        raise DataError(f"{config.data} has no training samples")
    return source


def _distillation(config: Distill, model: nn.Module) -> Distillation:
    return Distillation(open_teacher(config.teacher, model), config.weight, config.temperature)


def _taught(config: Train, curve: list[dict[str, float]]) -> dict[str, Any]:
    """What the report says of a distillation; `kl` is that of the last stretch of the curve."""
    if config.distill is None:
        return {}
    return {"distillation": {**config.distill.model_dump(), "kl": curve[-1]["kl"]}}


def _ramp_steps(config: Train) -> int | None:
    return max(1, round(config.steps * config.ternary_ramp)) if config.fake_quantize else None
