"""A recipe's settings as HF Trainer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mote_quant.errors import RequestError
from mote_quant.ranks import ranks
from mote_quant.recipe.schema import Train

_LOGGED = 50
_CHECKPOINTS = 10
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def _share(batch_size: int) -> int:
    """Of a batch of all processes, what each of them takes."""
    world = ranks().world
    if batch_size % world:
        raise RequestError(
            f"train.batch_size: {batch_size} samples cannot be shared by {world} processes; take a multiple of {world} "
            "(a batch is that of all processes together)"
        )
    return batch_size // world


def arguments_of(config: Train, seed: int, folder: Path, keeps: bool) -> Any:
    """TrainingArguments; with `keeps` checkpoints are written to `folder`."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=_share(config.batch_size),
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=round(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16",
        # Said outright: without it Trainer refuses bf16 on a machine that has only a CPU.
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="steps" if keeps else "no",
        save_steps=config.checkpoint_every or max(1, config.steps // _CHECKPOINTS),
        logging_steps=max(1, config.steps // _LOGGED),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=[],
        seed=seed,
    )
