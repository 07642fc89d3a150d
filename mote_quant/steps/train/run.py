"""The `train` step: HF Trainer underneath, only what the recipe names moves, resumable to the same bits."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mote_quant.data.source import Source
from mote_quant.errors import DataError
from mote_quant.hf import checkpoint, random_state
from mote_quant.hf.attach import attach
from mote_quant.hf.distillation import Distillation
from mote_quant.hf.latents import make_latent
from mote_quant.hf.teacher import open_teacher
from mote_quant.hf.trainer import MoteTrainer, Schedule
from mote_quant.moe import blocks
from mote_quant.progress import NOTICE
from mote_quant.recipe.schema import Distill, Train
from mote_quant.steps.base import Context
from mote_quant.steps.train.balance import own_balance
from mote_quant.steps.train.callbacks import Accumulation, Distance, Ramp, Watch
from mote_quant.steps.train.compiling import compiled
from mote_quant.steps.train.precision import float32_weights
from mote_quant.steps.train.selection import by_role, only_trainable, trainable_names

_log = logging.getLogger(__name__)
_LOGGED = 50
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def run(model: nn.Module, config: Train, context: Context) -> nn.Module:
    """Train `model` in place; notes what was trained and frozen, the loss curve, tokens and seconds."""
    source = _samples(config, context)
    if make_latent(model, context.formats):
        attach(model)
    chosen = trainable_names(model, config.what)
    context.notes |= by_role(model, chosen)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(random_state.isolated())
        stack.enter_context(_deterministic())
        stack.enter_context(only_trainable(model, set(chosen)))
        stack.enter_context(float32_weights(model, set(chosen) if config.precision == "bfloat16" else None))
        stack.enter_context(_router_losses(model, config))
        stack.enter_context(own_balance(model, config, chosen))
        stack.enter_context(_same_cache_setting(model))
        if config.compile:
            stack.enter_context(compiled(model))
        folder = context.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        watch = Watch(model, context.progress)
        ramp = Ramp(model, _ramp_steps(config))
        accumulation = Accumulation(model)
        stack.callback(ramp.end)
        stack.callback(accumulation.end)
        distillation = None if config.distill is None else _distillation(config.distill, model)
        callbacks = [watch, *([ramp] if config.ternary_ramp or not config.fake_quantize else [])]
        callbacks += [accumulation] if config.gradient_accumulation > 1 else []
        callbacks += [Distance(distillation)] if distillation else []
        samples = config.steps * config.batch_size * config.gradient_accumulation
        schedule = Schedule(source.train, samples, context.seed)
        arguments = _arguments(config, context, folder)
        trainer = MoteTrainer(model, arguments, schedule, source.collate, callbacks, distillation)
        resume = checkpoint.latest(context.folder)
        if resume is not None:
            _log.log(NOTICE, "going on after step %s of %d", resume.name.rpartition("-")[2], config.steps)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    context.notes |= {"tokens": trainer.tokens, "curve": watch.curve, "routing": watch.routing()}
    context.notes |= _taught(config, watch.curve) | ({"compile": True} if config.compile else {})
    context.notes["seconds"] = round(time.monotonic() - started, 3)
    if blocks(model):
        attach(model, balance_loss=config.balance_loss, z_loss=config.z_loss)
    model.eval()
    return model


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


def _arguments(config: Train, context: Context, folder: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=round(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        # Said outright: without it Trainer refuses bf16 on a machine that has only a CPU.
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="steps" if context.folder is not None else "no",
        save_steps=config.checkpoint_every or max(1, config.steps // 10),
        logging_steps=max(1, config.steps // _LOGGED),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
        seed=context.seed,
    )


@contextmanager
def _router_losses(model: nn.Module, config: Train) -> Iterator[None]:
    """Set the loss weights of every mixture layer; accumulated micro-batches each add theirs, so they share it."""
    before = {name: (block.balance_loss, block.z_loss) for name, block in blocks(model).items()}
    for block in blocks(model).values():
        block.balance_loss = config.balance_loss / config.gradient_accumulation
        block.z_loss = config.z_loss / config.gradient_accumulation
    try:
        yield
    finally:
        for name, block in blocks(model).items():
            block.balance_loss, block.z_loss = before[name]


@contextmanager
def _same_cache_setting(model: nn.Module) -> Iterator[None]:
    """Trainer turns the KV cache off in the model's config and leaves it off: it would be saved so."""
    config = cast(Any, model).config
    before = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same bits for the same seed where torch can promise them; operations that cannot are only warned about."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A guard against reading memory nobody wrote; it would cost a pass over every new tensor.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = fill
