"""The `train` step: HF Trainer underneath, only what the recipe names moves, resumable to the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from mote_quant.data.feed import Feed, open_feed
from mote_quant.data.source import Source
from mote_quant.hf.attach import attach
from mote_quant.hf.distillation import Distillation
from mote_quant.hf.guard import LossGuard
from mote_quant.hf.latents import make_latent
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.moe import blocks
from mote_quant.parallel import Spread, adapt, of_kind, recipe_decides, spread
from mote_quant.ranks import temporary_folder
from mote_quant.recipe.schema import Train
from mote_quant.steps.base import Context
from mote_quant.steps.train.arguments import arguments_of
from mote_quant.steps.train.callbacks import Accumulation, Distance, Ramp, Watch
from mote_quant.steps.train.learning import Learning
from mote_quant.steps.train.loop import carry_out
from mote_quant.steps.train.optimizer import build_optimizer
from mote_quant.steps.train.rates import parameter_groups, rates_in_words
from mote_quant.steps.train.search import with_best_rate
from mote_quant.steps.train.selection import by_role, trainable_names
from mote_quant.steps.train.surroundings import surroundings
from mote_quant.steps.train.teaching import distillation_for
from mote_quant.steps.train.validation import beside
from mote_quant.steps.train.validator import Validator
from mote_quant.watching import Figures

_COMPUTE = {"float32": None, "bfloat16": torch.bfloat16}


def run(model: nn.Module, config: Train, context: Context) -> nn.Module:
    """Train `model` in place; notes what was trained and frozen, the loss curve, tokens and seconds."""
    feed = open_feed(config, context.open_data, context.seed)
    if make_latent(model, context.formats):
        attach(model)
    chosen = trainable_names(model, config.what)
    context.notes |= by_role(model, chosen) | rates_in_words(model, chosen, config)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(recipe_decides(config.precision))
        stack.enter_context(surroundings(model, config, chosen))
        devices = stack.enter_context(spread(model, context.sharding, _COMPUTE[config.precision], context.packs_next))
        feed = feed.fitted([devices.model])
        distillation = distillation_for(config, model, feed, context.progress)
        folder = context.folder or stack.enter_context(temporary_folder())
        build = partial(_trainer, devices, context=context, chosen=chosen, feed=feed, distillation=distillation)
        attempt = partial(_attempt, build, devices.model, feed.source, distillation)
        config = with_best_rate(devices.model, config, attempt, chosen, folder, context)
        watch = Watch(devices.model, context.progress)
        learning = Learning.of(config, devices.model, feed.source, folder)
        callbacks = [watch, *_callbacks(devices.model, config, distillation, stack), *learning.callbacks]
        # Last: it writes what the others have added.
        callbacks.append(figures := _figures(devices.model, context, stack))
        trainer = build(
            config, folder=folder, callbacks=callbacks, guard=learning.guard, keeps=context.folder is not None
        )
        carry_out(trainer, config, learning.guard, context.record, context.folder)
        learned = learning.end()
    context.notes |= {"tokens": trainer.total_tokens(), "routing": watch.routing()}
    context.notes |= {"curve": beside(watch.curve, learned.get("validation", {}).get("curve", [])), **learned}
    context.notes |= feed.notes(trainer.train_dataset)
    context.notes |= figures.notes()
    context.notes |= _taught(config, watch.curve) | ({"compile": True} if config.compile else {})
    context.notes["seconds"] = round(time.monotonic() - started, 3)
    if blocks(model):
        attach(model, balance_loss=config.balance_loss, z_loss=config.z_loss)
    model.eval()
    return model


def _attempt(
    build: Callable[..., MoteTrainer],
    model: nn.Module,
    source: Source,
    distillation: Distillation | None,
    config: Train,
    samples: int,
) -> float:
    """The loss on so many validation samples after a short training as `config` has it."""
    validator = Validator(model, source, samples, config.batch_size, config.fake_quantize)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        build(config, folder=folder, callbacks=_callbacks(model, config, distillation, stack)).train()
        return validator.loss()


def _trainer(
    devices: Spread,
    config: Train,
    context: Context,
    chosen: Mapping[str, str],
    feed: Feed,
    folder: Path,
    callbacks: list[TrainerCallback],
    distillation: Distillation | None,
    guard: LossGuard | None = None,
    keeps: bool = False,
) -> MoteTrainer:
    schedule = feed.schedule(config.steps)
    arguments = arguments_of(config, context.seed, folder, keeps=keeps or guard is not None)

    def optimizer(decayed: Collection[str]) -> torch.optim.Optimizer:
        groups = of_kind(parameter_groups(devices.model, chosen, config, decayed))
        return build_optimizer(groups, config, devices.model, context.seed)

    trainer = MoteTrainer(devices.model, arguments, schedule, feed.collate, optimizer, callbacks, distillation, guard)
    adapt(trainer, devices)
    return trainer


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
    if config.gradient_accumulation > 1 or config.gradient_checkpointing:
        callbacks.append(accumulation)
    if distillation is not None:
        callbacks.append(Distance(distillation))
    return callbacks


def _figures(model: nn.Module, context: Context, stack: ExitStack) -> Figures:
    part = "train" if context.folder is None else context.folder.name
    figures = Figures(model, context.logs, context.log_to, part)
    stack.callback(figures.end)
    return figures


def _taught(config: Train, curve: list[dict[str, float]]) -> dict[str, Any]:
    """What the report says of a distillation; `kl` is that of the last stretch of the curve."""
    if config.distill is None:
        return {}
    return {"distillation": {**config.distill.model_dump(), "kl": curve[-1]["kl"]}}


def _ramp_steps(config: Train) -> int | None:
    return max(1, round(config.steps * config.ternary_ramp)) if config.fake_quantize else None
