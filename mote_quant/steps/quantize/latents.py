"""The end of quantization-aware training: latent weights give way to their packed codes."""

from __future__ import annotations

from torch import nn

from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear


def pack_latents(model: nn.Module) -> None:
    """Replace every `QatLinear` by the packed layer that a saved model is loaded with, layer by layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QatLinear):
            packed = PackedLinear.pack(module.spec, module.codes(), module.bias, module.weight.dtype)
            replace_module(model, name, packed.train(module.training))
