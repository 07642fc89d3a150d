"""An up-cycled model made ready for a trainer that is not ours."""

from __future__ import annotations

from collections.abc import Sequence
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
    for a model without mixture layers or with packed experts, TargetError for a target that matches nothing.
    """
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
