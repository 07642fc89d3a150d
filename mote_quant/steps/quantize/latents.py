"""The end of quantization-aware training: latent ternary weights give way to their packed codes."""

from __future__ import annotations

from torch import nn

from mote_quant.formats import Codes
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.ternary.linear import TernaryLinear


def pack_latents(model: nn.Module) -> None:
    """Replace every `TernaryLinear` by the packed layer that a saved model is loaded with, layer by layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, TernaryLinear):
            packed = PackedLinear.pack(module.spec, Codes(*module.codes()), module.bias, module.weight.dtype)
            replace_module(model, name, packed.train(module.training))
