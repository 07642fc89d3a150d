"""Experts in training: the whole feed-forward network of an expert, or of all of them, as one step of autograd.

Of what happens between its input and its output only the input, what up and gate make of it and the 2-bit codes of the
weights are kept for backward: less than a full-precision network keeps. The rest is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.dropout import _DropoutNd

from mote_quant.moe.joining import merge
from mote_quant.qat.grouped import GroupedProduct, groupable
from mote_quant.qat.linear import QatLinear, compute_dtype
from mote_quant.qat.product import KEPT, PARAMETERS, Product
from mote_quant.ternary.activation import round_activations


def feed_forward(layers: Sequence[nn.Module], x: Tensor, activation: nn.Module) -> Tensor | None:
    """`down(act(gate(x)) * up(x))` of layers (up, gate, down) or (up, down), for `x` as `quantize_input` returned it.

    None unless all of them are rounded to ternary or binary codes and the activation learns nothing and overwrites
    nothing: others are for autograd, operation by operation. So is what torch.compile traces, which fuses it itself.
    """
    return _run(Network.of([layers], (len(x),), activation, compute_dtype(x)), x)


def grouped_feed_forward(
    experts: Sequence[Sequence[nn.Module]], x: Tensor, counts: Sequence[int], activation: nn.Module
) -> Tensor | None:
    """The same for several experts at once, with `counts` of the sorted rows of `x` for each; those with none are idle.

    None also for a type or shapes that grouped products do not take.
    """
    busy = [expert for expert, count in zip(experts, counts, strict=True) if count]
    network = Network.of(busy, tuple(filter(None, counts)), activation, compute_dtype(x)) if busy else None
    return None if network is None or not network.groupable else _run(network, x)


def _run(network: Network | None, x: Tensor) -> Tensor | None:
    if network is None:
        return None
    return cast(Tensor, _FeedForward.apply(x, network, *network.parameters))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Network:
    """Experts alike, in steps: up, gate (if any) and down are each the layers of all of them, in order."""

    steps: tuple[tuple[QatLinear, ...], ...]
    counts: tuple[int, ...]
    activation: nn.Module
    dtype: torch.dtype

    @classmethod
    def of(
        cls, experts: Sequence[Sequence[nn.Module]], counts: tuple[int, ...], activation: nn.Module, dtype: torch.dtype
    ) -> Network | None:
        """None for what is left to autograd."""
        plain = next(activation.parameters(), None) is None and not getattr(activation, "inplace", False)
        # What is computed again in backward must come out the same.
        plain = plain and not any(isinstance(part, _DropoutNd) for part in activation.modules())
        if torch.compiler.is_compiling() or not plain:
            return None
        if not all(isinstance(layer, QatLinear) and layer.scaled for layers in experts for layer in layers):
            return None
        return cls(
            cast("tuple[tuple[QatLinear, ...], ...]", tuple(zip(*experts, strict=True))), counts, activation, dtype
        )

    @property
    def groupable(self) -> bool:
        """Whether products of all experts can be taken at once."""
        return all(groupable(layer.out_features, layer.in_features, self.dtype) for layer, *_ in self.steps)

    @property
    def parameters(self) -> list[Tensor | None]:
        """What autograd gives gradients to: step by step, layer by layer, its PARAMETERS."""
        return [getattr(layer, name) for layers in self.steps for layer in layers for name in PARAMETERS]

    def products(self, kept: Sequence[Any] = ()) -> list[Product | GroupedProduct]:
        """Of the weights as they are; or with what was `kept` of other products, those again."""
        layers = [layer for step in self.steps for layer in step]
        size, many = len(KEPT), len(self.counts)
        single = [
            Product.again(layer, kept[size * at : size * at + size], self.dtype) if kept else
            Product(layer, layer.latent(), self.dtype)
            for at, layer in enumerate(layers)
        ]  # fmt: skip
        if many == 1:
            return list(single)
        return [GroupedProduct(tuple(single[at : at + many]), self.counts) for at in range(0, len(single), many)]

    def merge(self, entered: Sequence[Tensor]) -> Tensor:
        """What enters the down projection, of what up (and gate) returned."""
        up, gate = entered if len(entered) > 1 else (entered[0], None)
        return merge(up, gate, self.activation)

    def round(self, hidden: Tensor) -> Tensor:
        """`hidden` as the down projection multiplies it."""
        return round_activations(hidden, self.dtype) if self.steps[-1][0].rounds_input else hidden.detach()


def _multiply(product: Product | GroupedProduct, x: Tensor, step: Sequence[QatLinear]) -> Tensor:
    """The product with `x` as the first layer of its step rounds it; of integers where that can be."""
    if isinstance(product, Product) and product.integers and step[0].rounds_input:
        return product.multiply_rounded(x)
    return product.multiply(x)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, network: Network, *parameters: Tensor | None) -> Tensor:
        *first, down = products = network.products()
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(network.dtype)
            entered = [_multiply(product, x, network.steps[0]) for product in first]
            output = _multiply(down, network.round(network.merge(entered)), network.steps[-1])
        ctx.network = network
        ctx.save_for_backward(x, *entered, *(tensor for product in products for tensor in product.kept))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        network: Network = ctx.network
        count, saved = len(network.steps), ctx.saved_tensors
        x, *entered = saved[:count]
        *first, down = network.products(saved[count:])
        to_x, _, *flat = ctx.needs_input_grad
        size = len(PARAMETERS) * len(network.counts)
        needed = [flat[at : at + size] for at in range(0, len(flat), size)]
        with torch.autocast(x.device.type, enabled=False):
            gradient = gradients[0].to(network.dtype).contiguous()
            behind, last = _through_down(network, down, entered, gradient, needed[-1])
            parts = list(zip(first, behind, strict=True))
            found = [product.to_parameters(part, x, need) for (product, part), need in zip(parts, needed, strict=False)]
            total = None
            for product, part in parts if to_x else ():
                total = product.to_input(part, total)
        return (total, None, *(gradient for own in found for gradient in own), *last)


def _through_down(
    network: Network,
    down: Product | GroupedProduct,
    entered: Sequence[Tensor],
    gradient: Tensor,
    needed: Sequence[bool],
) -> tuple[Sequence[Tensor], list[Tensor | None]]:
    """The gradients of what up (and gate) returned, and those of the down projection's parameters."""
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in entered]
        hidden = network.merge(leaves)
    parameters = down.to_parameters(gradient, network.round(hidden), needed)
    return torch.autograd.grad(hidden, leaves, down.to_input(gradient)), parameters
