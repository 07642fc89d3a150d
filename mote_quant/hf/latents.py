"""Experts that a model came with, made trainable for a low-bit format where they stand.

The weights become the latent floats of quantization-aware training; router, gates and shared experts stay the model's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mote_quant.hf.structure import empty_latent, replace_module
from mote_quant.hf.unfuse import unfuse_named
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Bits, QatBits, trains


def make_latent(model: nn.Module, formats: Mapping[str, Bits]) -> list[str]:
    """Put latent layers in the place of the linear layers that `formats` has trained; returns their names.

    Fused experts among them are taken apart. What up-cycling made, or will make, and what is latent already is left
    alone. On a meta skeleton as on a live model; there layer by layer, in float32 whatever the type of the model.
    """
    asked = {name: spec for name, spec in formats.items() if trains(spec)}
    unfuse_named(model, asked)
    ours = tuple(f"{path}." for path in blocks(model))
    modules = dict(model.named_modules())
    made = []
    for name, spec in asked.items():
        module = modules.pop(name, None)
        if isinstance(module, nn.Linear) and not isinstance(module, QatLinear) and not name.startswith(ours):
            replace_module(model, name, _latent(module, spec))
            made.append(name)
    return made


@torch.no_grad()
def _latent(linear: nn.Linear, spec: QatBits) -> QatLinear:
    made = empty_latent(linear, spec).train(linear.training)
    made.weight.copy_(linear.weight)
    if linear.bias is not None:
        made.bias.copy_(linear.bias)
    made.fit_scale()
    return made.requires_grad_(linear.weight.requires_grad)
