"""The balance of routers that a model came with: by the loss its own forward can add, where it has one.

`balance_loss` is then the model's `router_aux_loss_coef`, in the model's units (most count the number of experts a
token gets as perfectly uniform). A router that is not trained is left alone, as one of ours is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from mote_quant.anatomy.feedforward import expert_holders
from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import RequestError
from mote_quant.moe import blocks
from mote_quant.ranks import ranks
from mote_quant.recipe.schema import Train

_log = logging.getLogger(__name__)
_SWITCH, _WEIGHT = "output_router_logits", "router_aux_loss_coef"


def check_balance(model: nn.Module, config: Train, chosen: Mapping[str, str]) -> None:
    """RequestError where a recipe asks for a loss of trained routers (`chosen`: name -> role) that the model lacks."""
    if not _trains_own_router(model, chosen):
        return
    kind = type(model).__name__
    if config.z_loss:
        raise RequestError(f"train.z_loss: the routers of {kind} are its own and know no such loss; leave it out")
    if config.balance_loss and "balance_loss" in config.model_fields_set and not _has_own_loss(model):
        raise RequestError(
            f"train.balance_loss: the routers of {kind} are its own, and its forward adds no loss for them; leave it "
            "out, or set it to 0"
        )


@contextmanager
def own_balance(model: nn.Module, config: Train, chosen: Mapping[str, str]) -> Iterator[None]:
    """Inside, the model adds its own balance loss, times `config.balance_loss`, to the loss that is trained."""
    if not (config.balance_loss and _trains_own_router(model, chosen)):
        yield
        return
    if not _has_own_loss(model):
        _log.info("%s adds no loss for its routers: they are trained without balance_loss", type(model).__name__)
        yield
        return
    # Micro-batches, and processes, each add theirs to a loss that is a share of the step's; and Trainer multiplies that
    # by the number of processes, for their gradients are averaged.
    parts = config.gradient_accumulation * ranks().world
    values = {_SWITCH: True, _WEIGHT: config.balance_loss / parts}
    places = [(part, name) for part in (model, *_configs(model)) for name in values if name in vars(part)]
    before = [(part, name, getattr(part, name)) for part, name in places]
    try:
        for part, name in places:
            setattr(part, name, values[name])
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


def _trains_own_router(model: nn.Module, chosen: Mapping[str, str]) -> bool:
    if "router" not in chosen.values() or blocks(model):
        return False
    return any(True for path, layer in decoder_layers(model) for _ in expert_holders(path, layer))


def _has_own_loss(model: nn.Module) -> bool:
    takes = _SWITCH in inspect.signature(type(model).forward).parameters
    return takes and any(hasattr(config, _WEIGHT) for config in _configs(model))


def _configs(model: nn.Module) -> list[Any]:
    config = cast(Any, model).config
    text = config.get_text_config()
    return [config] if text is config else [config, text]
