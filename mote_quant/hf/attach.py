"""Tie a live model to our quantizer: its own methods save, push and cast it our way, `Trainer` knows if it trains."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn

from mote_quant.hf.hub import push_to_hub
from mote_quant.hf.pulling import watch_losses
from mote_quant.hf.quantizer import MoteConfig, MoteQuantizer, register
from mote_quant.hf.saving import save_pretrained
from mote_quant.hf.structure import structure_of
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def attach(
    model: nn.Module, *, quantizer: MoteQuantizer | None = None, finished: bool = False, **fields: Any
) -> MoteQuantizer:
    """Make `model` (changed by us) save and train as one of ours.

    `finished` models save packed bytes by default, others their latent floats. `fields` update the MoteConfig
    (`balance_loss`, `z_loss`, `provenance`).
    """
    register()
    known = quantizer or getattr(model, "hf_quantizer", None)
    quantizer = known or MoteQuantizer(MoteConfig(provenance=_origin(model)))
    config = quantizer.quantization_config
    for name, value in fields.items():
        setattr(config, name, value)
    config.latent = holds_latents(model)
    config.structure = structure_of(model, latent=True).to_dict()
    config.files = {}
    quantizer.save_latent = config.latent and not finished
    for block in blocks(model).values():
        block.balance_loss, block.z_loss = config.balance_loss, config.z_loss
    watch_losses(model)
    model.hf_quantizer = quantizer
    cast(Any, model).is_quantized = True
    cast(Any, model).config.quantization_config = config
    own: dict[str, Any] = {"save_pretrained": save_pretrained, "push_to_hub": push_to_hub}
    # transformers refuses these casts to quantized models; ours keep codes and scales by themselves.
    own |= {"half": nn.Module.half, "float": nn.Module.float}
    for name, method in own.items():
        setattr(model, name, partial(method, model))
    return quantizer


def _origin(model: nn.Module) -> dict[str, str]:
    """The hub model that this one was loaded as; nothing where it came from a folder, whose name says nothing."""
    name = str(getattr(model, "name_or_path", ""))
    return {"base_model": name} if _HUB_ID.fullmatch(name) and not Path(name).exists() else {}


def holds_latents(model: nn.Module) -> bool:
    """True when routed experts are held as trainable floats: latents, or full-precision experts."""
    experts = [module for block in blocks(model).values() for module in block.experts.modules()]
    return any(isinstance(module, nn.Linear) for module in experts) or any(
        isinstance(module, QatLinear) for module in model.modules()
    )
