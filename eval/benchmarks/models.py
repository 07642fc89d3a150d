"""Models of any size with weights that cost nothing to make: for speed it only matters that they are valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.formats import Codes
from mote_quant.hf.attach import attach
from mote_quant.hf.structure import Structure, rebuild
from mote_quant.kernels import PackedLinear
from mote_quant.moe.block import DenseKeyGuard
from mote_quant.moe.layout import PROJECTIONS, MoteLayout
from mote_quant.recipe import IntegerBits, TernaryBits
from mote_quant.recipe.schema import PackedBits

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_TERNARY = TernaryBits(format="ternary")
_INT4 = IntegerBits(format="int4", group_size=128)
_TILE, _SPREAD = 1 << 21, 0.02
_EXPERTS = 4


@dataclass(frozen=True)
class Kind:
    """Of four experts `top_k` see a token; 0 is a dense model. What has no format is bfloat16, the head always."""

    top_k: int = 0
    keeps_shared: bool = True
    routed: PackedBits | None = None
    shared: PackedBits | None = None
    attention: PackedBits | None = None


KINDS: Mapping[str, Kind] = {
    "bf16 dense": Kind(),
    "bf16 MoE": Kind(top_k=2, keeps_shared=False),
    "MoTE": Kind(top_k=1, routed=_TERNARY),
    "MoTE+int4": Kind(top_k=1, routed=_TERNARY, shared=_INT4, attention=_INT4),
    "MoTE in bf16": Kind(top_k=1),
}


@torch.no_grad()
def build(kind: Kind, settings: Mapping[str, Any]) -> nn.Module:
    """A Qwen2 model of the config `settings` in bfloat16, its weights repetitions of a short random run."""
    from accelerate import init_empty_weights
    from transformers import Qwen2Config, Qwen2ForCausalLM

    # Parameters on meta, buffers (tables of rotary positions) real.
    with init_empty_weights(include_buffers=False):
        model: nn.Module = Qwen2ForCausalLM._from_config(Qwen2Config(**settings), dtype=torch.bfloat16)
    rebuild(model, _structure(kind, settings))
    _fill(model)
    cast(Any, model).tie_weights()
    attach(model, finished=True)
    return model.eval()


def _structure(kind: Kind, settings: Mapping[str, Any]) -> Structure:
    layers = [f"model.layers.{index}" for index in range(settings["num_hidden_layers"])]
    layouts = [_layout(kind, settings, f"{layer}.mlp") for layer in layers] if kind.top_k else []
    packed = {name: spec for layer in layers for name, spec in _formats(kind, layer) if spec is not None}
    return Structure(tuple(layouts), packed)


def _formats(kind: Kind, layer: str) -> Iterator[tuple[str, PackedBits | None]]:
    for name in PROJECTIONS:
        yield f"{layer}.mlp.shared_expert.{name}", kind.shared
        yield from ((f"{layer}.mlp.experts.{expert}.{name}", kind.routed) for expert in range(_EXPERTS))
    yield from ((f"{layer}.self_attn.{name}", kind.attention) for name in _ATTENTION)


def _layout(kind: Kind, settings: Mapping[str, Any], path: str) -> MoteLayout:
    return MoteLayout(
        path=path, kind="gated", up="up_proj", down="down_proj", gate="gate_proj", activation="act_fn", inline=False,
        hidden_size=settings["hidden_size"], intermediate_size=settings["intermediate_size"], bias=False,
        experts=_EXPERTS, top_k=kind.top_k, shared=kind.keeps_shared, combine="additive", mix=0.5,
        normalize_gates=not kind.keeps_shared, qat={},
    )  # fmt: skip


def _fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(_TILE, generator=generator) * _SPREAD
    packed: dict[str, PackedLinear] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                values = _values(name, parameter, _rolled(tile, generator))
                setattr(module, name, nn.Parameter(values, requires_grad=False))
        if isinstance(module, PackedLinear):
            key = f"{module.spec!r} {module.out_features} {module.in_features}"
            packed[key] = packed.get(key) or _packed(module)
            for name, buffer in packed[key].named_buffers():
                module.register_buffer(name, _rolled(buffer, generator))
        elif isinstance(module, DenseKeyGuard):
            module.weight = torch.empty_like(module.weight, device="cpu")


def _rolled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Rows in another order: layers that are all alike would send every token to the same expert."""
    return tensor.roll(int(torch.randint(len(tensor), (), generator=generator)), 0)


def _values(name: str, like: Tensor, tile: Tensor) -> Tensor:
    """Matrices are the tile over and over; norms are 1 and biases 0."""
    if like.dim() == 1:
        return torch.full(like.shape, 0.0 if name == "bias" else 1.0, dtype=like.dtype)
    filled = torch.empty(like.numel(), dtype=like.dtype)
    whole = len(filled) // _TILE * _TILE
    filled[:whole].view(-1, _TILE).copy_(tile.expand(whole // _TILE, -1))
    filled[whole:] = tile[: len(filled) - whole]
    return filled.view(like.shape)


def _packed(like: PackedLinear) -> PackedLinear:
    """Random codes in the format of `like`."""
    shape = (like.out_features, like.in_features)
    low, high = (-1, 2) if isinstance(like.spec, TernaryBits) else (-8, 8)
    codes = torch.randint(low, high, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = like.format.layout(shape)["weight_scale"]
    scales = torch.full(scale.shape, _SPREAD, dtype=scale.dtype)
    return PackedLinear.pack(like.spec, Codes(codes, scales), None, like.dtype)
