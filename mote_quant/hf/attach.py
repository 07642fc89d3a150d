"""Tie a live model to our quantizer: its own `save_pretrained` writes our files, `Trainer` knows whether it trains."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import nn

from mote_quant.hf.quantizer import MoteConfig, MoteQuantizer, register
from mote_quant.hf.saving import save_pretrained
from mote_quant.hf.structure import structure_of
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear


def attach(
    model: nn.Module, *, quantizer: MoteQuantizer | None = None, finished: bool = False, **fields: Any
) -> MoteQuantizer:
    """Make `model` (changed by us) save and train as one of ours.

    `finished` models save packed bytes by default, others their latent floats. `fields` update the MoteConfig
    (`balance_loss`, `z_loss`, `provenance`).
    """
    register()
    quantizer = quantizer or getattr(model, "hf_quantizer", None) or MoteQuantizer(MoteConfig())
    config = quantizer.quantization_config
    for name, value in fields.items():
        setattr(config, name, value)
    config.latent = holds_latents(model)
    config.structure = structure_of(model, latent=True).to_dict()
    config.files = {}
    quantizer.save_latent = config.latent and not finished
    for block in blocks(model).values():
        block.balance_loss, block.z_loss = config.balance_loss, config.z_loss
    model.hf_quantizer = quantizer
    cast(Any, model).is_quantized = True
    cast(Any, model).config.quantization_config = config
    cast(Any, model).save_pretrained = partial(save_pretrained, model)
    return quantizer


def holds_latents(model: nn.Module) -> bool:
    """True when routed experts are held as trainable floats: latents, or full-precision experts."""
    experts = [module for block in blocks(model).values() for module in block.experts.modules()]
    return any(isinstance(module, nn.Linear) for module in experts) or any(
        isinstance(module, QatLinear) for module in model.modules()
    )
