"""Put mixture layers into a model: around a dense block (up-cycling) or on a meta skeleton (reload). One code path."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.activation import activation_of
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe.block import MoteBlock
from mote_quant.moe.experts import Expert
from mote_quant.moe.joining import NormedJoin
from mote_quant.moe.layout import MoteLayout, Projection
from mote_quant.moe.lora import LoraExpert, LowRank
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import QatBits


class InlineFeedForward(nn.Module):
    """The feed-forward part of a decoder layer that keeps it inline (OPT), as a module of its own."""

    def __init__(self, layout: MoteLayout, up: nn.Module, activation: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.add_module(layout.up, up)
        self.add_module(str(layout.activation), activation)
        self.add_module(layout.down, down)
        self._names = (layout.up, str(layout.activation), layout.down)

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
    activation = activation_of(dense, layout.activation, layout.function)
    join = activation if layout.norm is None else NormedJoin(activation, dense.get_submodule(layout.norm))
    block = _block(layout, dense.get_submodule(layout.up), join, dense)
    _replace(model, layout.path, block)
    return block


def _install_inline(model: nn.Module, layout: MoteLayout) -> MoteBlock:
    parent = layout.path.rpartition(".")[0]
    layer = model.get_submodule(parent)
    up, down = layer.get_submodule(layout.up), layer.get_submodule(layout.down)
    activation = layer.get_submodule(str(layout.activation))
    block = _block(layout, up, activation, InlineFeedForward(layout, up, activation, down))
    _replace(model, layout.path, block)
    setattr(layer, str(layout.activation), nn.Identity())
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
    if layout.lora_rank is not None:
        return _lora_expert(layout, layout.lora_rank, dtype, device)
    linear = _linear_factory(layout, dtype, device)
    hidden, inner = layout.hidden_size, layout.expert_size
    gate = linear("gate_proj", hidden, inner) if layout.gate else None
    return Expert(linear("up_proj", hidden, inner), linear("down_proj", inner, hidden), gate)


def _lora_expert(layout: MoteLayout, rank: int, dtype: torch.dtype, device: torch.device) -> LoraExpert:
    def linear(columns: int, rows: int) -> nn.Linear:
        return nn.Linear(columns, rows, bias=False, dtype=dtype, device="meta").to_empty(device=device)

    def change(columns: int, rows: int) -> LowRank:
        return LowRank(linear(columns, rank), linear(rank, rows))

    hidden, inner = layout.hidden_size, layout.expert_size
    return LoraExpert(change(hidden, inner), change(inner, hidden), change(hidden, inner) if layout.gate else None)


def _linear_factory(
    layout: MoteLayout, dtype: torch.dtype, device: torch.device
) -> Callable[[Projection, int, int], nn.Linear]:
    def factory(projection: Projection, columns: int, rows: int) -> nn.Linear:
        # Made on meta: the default initialisation would draw from the caller's random state for nothing.
        spec = layout.qat.get(projection)
        if spec is None:
            linear = nn.Linear(columns, rows, bias=layout.bias, dtype=dtype, device="meta")
        else:
            linear = latent_linear(columns, rows, spec, layout.bias)
        return linear.to_empty(device=device)

    return factory


def latent_linear(columns: int, rows: int, spec: QatBits, bias: bool) -> QatLinear:
    """A latent layer on meta; float32 in any model: steps this small would be lost in 16 bits."""
    return QatLinear(columns, rows, spec, bias, torch.float32, "meta")


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
