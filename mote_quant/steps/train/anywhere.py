"""An up-cycled model made ready for a trainer that is not ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import nn

from mote_quant.errors import RequestError
from mote_quant.hf.attach import attach, holds_latents
from mote_quant.moe import blocks
from mote_quant.steps.train.selection import trainable_names

Model = TypeVar("Model", bound=nn.Module)


def trainable(
    model: Model, what: Sequence[str] = ("routed", "router"), *, balance_loss: float = 0.01, z_loss: float = 0.0
) -> Model:
    """`model`, up-cycled and not yet packed: only `what` (targets as in a recipe) requires gradients from now on.

    Whatever trains it minimises the router losses along, at these weights; `save_pretrained` keeps them. RequestError
    for a model without mixture layers or with packed experts, and for what a recipe would refuse too; TargetError for a
    target that matches nothing.
    """
    _check(what, {"balance_loss": balance_loss, "z_loss": z_loss})
    if not blocks(model):
        raise RequestError("this model has no mixture layers: apply a recipe with an upcycle step to it first")
    if not holds_latents(model):
        raise RequestError(
            "the experts of this model are packed and have no weights to train: apply the recipe without its quantize "
            "step, or with quantize: {keep_latents: true}"
        )
    chosen = trainable_names(model, what)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    attach(model, balance_loss=balance_loss, z_loss=z_loss)
    return model


def _check(what: Sequence[str], weights: Mapping[str, float]) -> None:
    if isinstance(what, str) or not what:
        raise RequestError(f"what trains is a list of targets, as ['routed', 'router'], not {what!r}")
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise RequestError(f"{name} is a number from 0, not {weight!r}")
