"""What holds while a training runs, and is as it was before when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

from mote_quant.hf import random_state
from mote_quant.moe import blocks
from mote_quant.recipe.schema import Train
from mote_quant.steps.train.balance import own_balance
from mote_quant.steps.train.checkpointing import checkpointed
from mote_quant.steps.train.compiling import compiled
from mote_quant.steps.train.precision import training_types
from mote_quant.steps.train.selection import only_trainable


@contextmanager
def surroundings(model: nn.Module, config: Train, chosen: Mapping[str, str]) -> Iterator[None]:
    """Inside, `model` is as `config` wants to train it: `chosen` (name -> role) and nothing else."""
    with ExitStack() as stack:
        stack.enter_context(random_state.isolated())
        stack.enter_context(_deterministic())
        stack.enter_context(only_trainable(model, set(chosen)))
        stack.enter_context(training_types(model, config, chosen))
        stack.enter_context(_router_losses(model, config))
        stack.enter_context(own_balance(model, config, chosen))
        stack.enter_context(_same_cache_setting(model))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(model))
        if config.compile:
            stack.enter_context(compiled(model))
        yield


@contextmanager
def _router_losses(model: nn.Module, config: Train) -> Iterator[None]:
    """Set the loss weights of every mixture layer."""
    before = {name: (block.balance_loss, block.z_loss) for name, block in blocks(model).items()}
    for block in blocks(model).values():
        block.balance_loss = config.balance_loss
        block.z_loss = config.z_loss
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
