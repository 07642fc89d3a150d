"""Packed weights of a seed."""

from __future__ import annotations

from dataclasses import replace

import torch

from mote_quant.formats import Codes
from mote_quant.formats.integer import INPUT_SCALE, code_range
from mote_quant.formats.registry import format_for
from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe import IntegerBits, TernaryBits


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def packed_ternary(spec: TernaryBits, shape: tuple[int, int], seed: int = 0) -> PackedWeight:
    """Random codes and scales."""
    made, form = generator(seed), format_for(spec)
    codes = torch.randint(-1, 2, shape, generator=made).to(torch.int8)
    scale = form.layout(shape)["weight_scale"]
    scales = torch.rand(scale.shape, generator=made).add(0.1).to(scale.dtype)
    return PackedWeight(form.compress(Codes(codes, scales)), shape, form)


def packed_integer(spec: IntegerBits, shape: tuple[int, int], seed: int = 0) -> PackedWeight:
    """Random codes, scales, zero points where there are any, and factors of the inputs."""
    made, form = generator(seed), format_for(spec)
    low, high = code_range(spec)
    layout = form.layout(shape)
    groups = layout["weight_scale"].shape
    codes = torch.randint(low, high + 1, shape, generator=made)
    scales = torch.rand(groups, generator=made).add(0.1).div(high).to(layout["weight_scale"].dtype)
    zero = None if spec.symmetric else torch.randint(0, high + 1, groups, generator=made)
    if spec.float_zeros and zero is not None:
        zero = zero + torch.rand(groups, generator=made)
    factors = {INPUT_SCALE: torch.rand(shape[1], generator=made) + 0.5}
    return PackedWeight(form.compress(Codes(codes, scales, zero, factors)), shape, form)


def packed_experts(
    spec: TernaryBits, count: int, hidden: int, inner: int, gated: bool, biased: bool, activation: str
) -> PackedExperts:
    """Experts of random codes, with outputs about as large as their inputs."""
    shapes = [*[(inner, hidden)] * (1 + gated), (hidden, inner)] * count
    weights = [packed_ternary(spec, shape, seed) for seed, shape in enumerate(shapes)]
    return PackedExperts(
        weights=[weight.tensors["weight"] for weight in weights],
        scales=[weight.tensors["weight_scale"] * 0.1 for weight in weights],
        biases=[torch.randn(rows, generator=generator(rows)) for rows, _ in shapes] if biased else [],
        format=weights[0].format, gated=gated, hidden=hidden, inner=inner, activation=activation,
    )  # fmt: skip


def experts_on(device: torch.device, packed: PackedExperts) -> PackedExperts:
    """The same experts on a device."""
    moved = {name: [part.to(device) for part in getattr(packed, name)] for name in ("weights", "scales", "biases")}
    return replace(packed, **moved)


def weight_on(device: torch.device, weight: PackedWeight) -> PackedWeight:
    """The same weight on a device."""
    return replace(weight, tensors={name: tensor.to(device) for name, tensor in weight.tensors.items()})
