"""Put mixture layers into a model: around a dense block (up-cycling) or on a meta skeleton (reload). One code path."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe.block import MoteBlock
from mote_quant.moe.experts import Expert
from mote_quant.moe.layout import MoteLayout
from mote_quant.ternary.linear import TernaryLinear


class InlineFeedForward(nn.Module):
    """The feed-forward part of a decoder layer that keeps it inline (OPT), as a module of its own."""

    def __init__(self, layout: MoteLayout, up: nn.Module, activation: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.add_module(layout.up, up)
        self.add_module(layout.activation, activation)
        self.add_module(layout.down, down)
        self._names = (layout.up, layout.activation, layout.down)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        for name in self._names:
            x = self.get_submodule(name)(x)
        return x


def install(model: nn.Module, layout: MoteLayout) -> MoteBlock:
    """Replace the dense block at `layout.path` by a mixture whose experts and router are not yet initialised.

    The dense modules become the shared expert untouched (or are dropped). Experts take type and device of the dense
    block, so on a meta skeleton everything stays on meta.
    """
    return _install_inline(model, layout) if layout.inline else _install_module(model, layout)


def _install_module(model: nn.Module, layout: MoteLayout) -> MoteBlock:
    dense = model.get_submodule(layout.path)
    activation = dense.get_submodule(layout.activation)
    block = _block(layout, dense.get_submodule(layout.up), activation, dense)
    _replace(model, layout.path, block)
    return block


def _install_inline(model: nn.Module, layout: MoteLayout) -> MoteBlock:
    parent = layout.path.rpartition(".")[0]
    layer = model.get_submodule(parent)
    up, activation, down = (layer.get_submodule(name) for name in (layout.up, layout.activation, layout.down))
    block = _block(layout, up, activation, InlineFeedForward(layout, up, activation, down))
    _replace(model, layout.path, block)
    setattr(layer, layout.activation, nn.Identity())
    setattr(layer, layout.down, nn.Identity())
    return block


def _block(layout: MoteLayout, like: nn.Module, activation: nn.Module, dense: nn.Module) -> MoteBlock:
    weight = cast(Tensor, like.weight)
    # A packed weight is bytes, and its layer knows the type it stands for.
    dtype = like.dtype if isinstance(like, PackedLinear) else weight.dtype
    experts = [_expert(layout, dtype, weight.device) for _ in range(layout.experts)]
    block = MoteBlock(layout, experts, activation, dense if layout.shared else None, weight.device)
    block.train(dense.training)
    return block


def _expert(layout: MoteLayout, dtype: torch.dtype, device: torch.device) -> Expert:
    linear = _linear_factory(layout, dtype, device)
    hidden, inner = layout.hidden_size, layout.intermediate_size
    gate = linear(hidden, inner) if layout.gate else None
    return Expert(linear(hidden, inner), linear(inner, hidden), gate)


def _linear_factory(layout: MoteLayout, dtype: torch.dtype, device: torch.device) -> Callable[[int, int], nn.Linear]:
    def factory(columns: int, rows: int) -> nn.Linear:
        # Made on meta: the default initialisation would draw from the caller's random state for nothing.
        if layout.ternary is None:
            linear = nn.Linear(columns, rows, bias=layout.bias, dtype=dtype, device="meta")
        else:
            # Latent weights are float32 in any model: steps this small would be lost in 16 bits.
            linear = TernaryLinear(columns, rows, layout.ternary, layout.bias, torch.float32, "meta")
        return linear.to_empty(device=device)

    return factory


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
