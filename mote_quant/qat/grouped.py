"""The products of all experts of a layer at once: tokens sorted by expert, weights in one stack (`F.grouped_mm`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.qat.product import PARAMETERS, Product

_ALIGNED = 16


def groupable(rows: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether `F.grouped_mm` takes weights of this shape: rows of operands start at multiples of 16 bytes."""
    return rows * dtype.itemsize % _ALIGNED == 0 and columns * dtype.itemsize % _ALIGNED == 0


@dataclass(frozen=True)
class GroupedProduct:
    """`x -> x W_e^T + b_e` for each expert e and its rows of `x`, `counts[e]` of them, one expert after the other."""

    products: tuple[Product, ...]
    counts: tuple[int, ...]

    @property
    def kept(self) -> tuple[Tensor | None, ...]:
        """What backward needs of one expert after the other."""
        return tuple(chain.from_iterable(product.kept for product in self.products))

    def multiply(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        y = F.grouped_mm(x, self._stack(x).transpose(-2, -1), offs=self._ends(x))
        biases = [product.layer.bias.to(y.dtype) for product in self.products if product.layer.bias is not None]
        for bias, part in zip(biases, torch.split(y, list(self.counts)), strict=False):
            part += bias
        return y

    def to_input(self, gradient: Tensor, other: Tensor | None = None) -> Tensor:
        """The gradient of x, from that of the product [n, out]; with `other`, added to that one in place."""
        added = F.grouped_mm(gradient, self._stack(gradient), offs=self._ends(gradient))
        return added if other is None else other.add_(added)

    def to_parameters(self, gradient: Tensor, x: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of each expert's parameters, slices of one stack, of those that are `needed`."""
        whole: Sequence[Tensor | None] = [None] * len(self.products)
        if any(needed):
            grouped = F.grouped_mm(gradient.t(), x, offs=self._ends(x))
            whole = grouped.to(self.products[0].layer.weight.dtype).unbind()
        found: list[Tensor | None] = []
        size = len(PARAMETERS)
        for index, (product, part) in enumerate(
            zip(self.products, torch.split(gradient, list(self.counts)), strict=True)
        ):
            found += product.distribute(whole[index], part, needed[index * size : (index + 1) * size])
        return found

    def _stack(self, like: Tensor) -> Tensor:
        """The rounded weights [E, out, in], each written into its place."""
        first = self.products[0]
        stack = like.new_empty(len(self.products), first.layer.out_features, first.layer.in_features)
        for product, place in zip(self.products, stack, strict=True):
            product.latent.write(place)
        return stack

    def _ends(self, like: Tensor) -> Tensor:
        return torch.tensor(self.counts, dtype=torch.int32, device=like.device).cumsum(0, dtype=torch.int32)
