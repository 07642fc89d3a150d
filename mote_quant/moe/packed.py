"""Packed experts of a layer run as one operation: no Python between the projections, nothing unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mote_quant.kernels import any_experts, table
from mote_quant.kernels.experts import ACTIVATIONS, PackedExperts
from mote_quant.kernels.ops import format_of, unwatched
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe.experts import Expert
from mote_quant.moe.router import Choice
from mote_quant.recipe.schema import TernaryBits


class Packed(NamedTuple):
    """What `torch.ops.mote_quant.ternary_experts` takes of a layer's experts."""

    weights: list[Tensor]
    scales: list[Tensor]
    biases: list[Tensor]
    spec: str
    gated: bool
    inner: int


def packed_route(x: Tensor, experts: Sequence[Expert], choice: Choice, name: str | None) -> Tensor | None:
    """`sum_k gate_k * E_k(x)` for `x` [T, hidden] by the op, over the experts that the choice keeps; or None."""
    if choice.kept is None:
        return packed_experts(x, experts, choice.experts, choice.gates, name)
    if torch.compiler.is_compiling():
        # A graph has no place for a number of tokens that only running tells: what is skipped weighs nothing there.
        return packed_experts(x, experts, choice.experts, choice.gates * choice.kept, name)
    tokens, slots = choice.kept.nonzero(as_tuple=True)
    chosen, gates = choice.experts[tokens, slots], choice.gates[tokens, slots]
    output = packed_experts(x[tokens], experts, chosen.unsqueeze(-1), gates.unsqueeze(-1), name)
    return None if output is None else x.new_zeros(x.shape).index_add_(0, tokens, output)


def packed_experts(
    x: Tensor, experts: Sequence[Expert], chosen: Tensor, gates: Tensor, name: str | None
) -> Tensor | None:
    """The same for any choice of experts [T, k] with their gates [T, k]; None where layer or moment is not for the op.

    `name` is the `activation_name`. The op gives no gradients, and takes ternary experts with int8 activations that are
    packed alike.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)
    if learns or name is None:
        return None
    found = gather(experts)
    if found is not None:
        return _call(x, chosen, gates.float(), found, name)
    return _in_one_graph(x, experts, chosen, gates.float(), name) if torch.compiler.is_compiling() else None


def _call(x: Tensor, chosen: Tensor, gates: Tensor, packed: Packed, activation: str) -> Tensor:
    if unwatched(x):
        form = format_of(packed.spec)
        experts = PackedExperts(*packed[:3], form, packed.gated, x.shape[-1], packed.inner, activation)
        return table.experts(x, chosen, gates, experts)
    return cast(Tensor, torch.ops.mote_quant.ternary_experts(x, chosen, gates, *packed, activation))


def _in_one_graph(x: Tensor, experts: Sequence[Expert], chosen: Tensor, gates: Tensor, name: str) -> Tensor | None:
    """The same for experts of any packed formats, within one graph; None where one of them is not packed."""
    layers = [layer for expert in experts if type(expert) is Expert for layer in expert.layers]
    biases = [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
    packed = all(type(layer) is PackedLinear and not _hooked(layer) for layer in layers)
    if not (layers and packed and len(biases) in (0, len(layers))):
        return None
    stored = [tensor for layer in layers for tensor in layer.buffers(recurse=False)]
    specs = [cast(PackedLinear, layer).spec_text for layer in layers]
    gated, inner = len(experts[0].layers) == 3, cast(PackedLinear, layers[0]).out_features
    return any_experts.packed_experts(x, chosen, gates, stored, biases, specs, gated, inner, name)


def gather(experts: Sequence[Expert]) -> Packed | None:
    """The stored tensors of all experts in the op's order; None unless all are packed as it takes them."""
    first = getattr(experts[0], "up_proj", None)
    if type(first) is not PackedLinear or not _fits(first.spec):
        return None
    gated = hasattr(experts[0], "gate_proj")
    names = ("up_proj", "gate_proj", "down_proj") if gated else ("up_proj", "down_proj")
    layers = [getattr(expert, name) for expert in experts for name in names]
    if any(type(layer) is not PackedLinear or layer.spec != first.spec for layer in layers):
        return None
    biases = [] if first.bias is None else [layer.bias for layer in layers]
    if any((layer.bias is None) != (first.bias is None) or _hooked(layer) for layer in layers):
        return None
    return Packed(
        [layer.weight for layer in layers],
        [layer.weight_scale for layer in layers],
        biases,
        first.spec_text,
        gated,
        first.out_features,
    )


def _hooked(layer: nn.Module) -> bool:
    """Whether something is to happen when this very layer is called, as where accelerate offloads it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _fits(spec: object) -> bool:
    return isinstance(spec, TernaryBits) and spec.activations == "int8" and spec.granularity != "group"


def activation_name(activation: nn.Module) -> str | None:
    """Which of ACTIVATIONS a module computes, found by trying it; None if none of them."""
    holds_something = any(True for _ in activation.children()) or activation._parameters or activation._buffers
    if holds_something:
        return None
    with torch.no_grad(), torch.device("cpu"):
        # Some are cut off far from 0.
        x = torch.cat([torch.linspace(-8.0, 8.0, 257), torch.tensor([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])])
        found = activation(x)
        # Far closer than any two of them are to each other, far wider than rounding.
        return next((name for name, known in ACTIVATIONS.items() if torch.allclose(found, known(x), atol=1e-5)), None)
