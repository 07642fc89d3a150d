"""The end of quantization-aware training: latent weights give way to their packed codes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear


def pack_latents(model: nn.Module, within: Callable[[str], bool] = lambda name: True) -> None:
    """Replace every `QatLinear` (`within` says yes to) by the packed layer that a saved model is loaded with."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QatLinear) and within(name):
            packed = PackedLinear.pack(module.spec, module.codes(), module.bias, module.weight.dtype)
            replace_module(model, name, packed.train(module.training))
