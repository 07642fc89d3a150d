"""The `train` step: HF Trainer underneath, only what the recipe names moves, resumable to the same bits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mote_quant.data.feed import Feed, open_feed
from mote_quant.hf.attach import attach
from mote_quant.hf.latents import make_latent
from mote_quant.moe import blocks
from mote_quant.parallel import codes_suffice, recipe_decides, spread
from mote_quant.ranks import ranks, temporary_folder
from mote_quant.recipe.schema import Train
from mote_quant.steps.base import Context
from mote_quant.steps.train.callbacks import Watch
from mote_quant.steps.train.learning import Learning
from mote_quant.steps.train.loop import carry_out
from mote_quant.steps.train.rates import rates_in_words
from mote_quant.steps.train.search import with_best_rate
from mote_quant.steps.train.selection import by_role, trainable_names
from mote_quant.steps.train.session import Session
from mote_quant.steps.train.surroundings import surroundings
from mote_quant.steps.train.teaching import distillation_for
from mote_quant.steps.train.validation import beside
from mote_quant.watching import Figures

_COMPUTE = {"float32": None, "bfloat16": torch.bfloat16}


def run(model: nn.Module, config: Train, context: Context) -> nn.Module:
    """Train `model` in place; notes what was trained and frozen, the loss curve, tokens and seconds."""
    started = time.monotonic()
    feed = open_feed(config, context.open_data, context.seed)
    if make_latent(model, context.formats):
        attach(model)
    chosen = trainable_names(model, config.what)
    context.notes |= by_role(model, chosen) | rates_in_words(model, chosen, config)
    if ranks().several:
        context.notes["devices"] = {"processes": ranks().world, "sharding": context.sharding}
    with _session(model, config, context, chosen, feed) as session:
        _train(session, config, context)
    context.notes["seconds"] = round(time.monotonic() - started, 3)
    if blocks(model):
        attach(model, balance_loss=config.balance_loss, z_loss=config.z_loss)
    model.eval()
    return model


@contextmanager
def _session(
    model: nn.Module, config: Train, context: Context, chosen: Mapping[str, str], feed: Feed
) -> Iterator[Session]:
    """Inside, `model` is what `config` wants to train, on the devices where it trains."""
    with (
        recipe_decides(config.precision),
        surroundings(model, config, chosen),
        spread(
            model, context.sharding, _COMPUTE[config.precision], context.packs_next, codes_suffice(config)
        ) as devices,
    ):
        fitted = feed.fitted([devices.model])
        distillation = distillation_for(config, model, fitted, context.progress)
        yield Session(devices, context, chosen, fitted, distillation)


def _train(session: Session, config: Train, context: Context) -> None:
    """From the search for a rate to the best weights; what there is to say goes into the notes."""
    with ExitStack() as stack:
        folder = context.folder or stack.enter_context(temporary_folder())
        config = with_best_rate(session.model, config, session.attempt, session.chosen, folder, context)
        watch, learning = Watch(session.model, context.progress), Learning.of(config, session, folder)
        figures = Figures(session.model, context.logs, context.log_to, folder.name if context.folder else "train")
        stack.callback(figures.end)
        # Figures last: they write what the others have added.
        callbacks = [watch, *stack.enter_context(session.between_steps(config)), *learning.callbacks, figures]
        trainer = session.trainer(config, folder, callbacks, learning.guard, keeps=context.folder is not None)
        carry_out(trainer, config, learning.guard, context.record, context.folder)
        learned = learning.end()
        context.notes |= {"tokens": trainer.total_tokens(), "routing": watch.routing()}
    context.notes |= {"curve": beside(watch.curve, learned.get("validation", {}).get("curve", [])), **learned}
    context.notes |= session.feed.notes(trainer.train_dataset) | figures.notes() | _settings(config, watch.curve)


def _settings(config: Train, curve: list[dict[str, float]]) -> dict[str, Any]:
    """What the report says of the settings; `kl` of a distillation is that of the last stretch of the curve."""
    taught = config.distill and {"distillation": {**config.distill.model_dump(), "kl": curve[-1]["kl"]}}
    return (taught or {}) | ({"compile": True} if config.compile else {})
