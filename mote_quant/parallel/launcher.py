"""What a launcher says in its environment, and what of it is the recipe's to say."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mote_quant.errors import RequestError
from mote_quant.parallel.sharings import SHARDINGS, Sharding
from mote_quant.progress import NOTICE
from mote_quant.recipe.near import did_you_mean

_log = logging.getLogger(__name__)
_FSDP, _DEEPSPEED, _PRECISION = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"
# How a model is sharded is done here, what it computes in and how often it moves is in the recipe.
_OURS = (_FSDP, _PRECISION, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_BACKEND")


def chosen(asked: Sharding | None) -> Sharding:
    """How processes share a training: as `asked`, else as `accelerate launch` was told.

    RequestError for DeepSpeed, and for a way that nobody knows: it would be taken for DDP.
    """
    if asked is not None and asked not in SHARDINGS:
        meant = did_you_mean(str(asked), SHARDINGS) or f"; choose of {', '.join(SHARDINGS)}"
        raise RequestError(f"processes cannot share a training by {asked}{meant}")
    if _is_set(_DEEPSPEED):
        raise RequestError(
            "accelerate launch was told to use DeepSpeed, and a train step shares models by DDP or FSDP2: use "
            "--use_fsdp, or train with transformers' Trainer (docs/scaling.md shows how, with DeepSpeed)"
        )
    return asked or ("fsdp2" if _is_set(_FSDP) else "ddp")


@contextmanager
def recipe_decides(precision: str) -> Iterator[None]:
    """Inside, accelerate reads nothing from its environment that is not its own to decide."""
    told = os.environ.get(_PRECISION, "no")
    if told not in ("no", "") and not precision.startswith(told[:2]):
        _log.log(NOTICE, "the launcher asks for mixed precision (%s); the recipe says precision: %s", told, precision)
    before = {name: os.environ.pop(name) for name in _OURS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
