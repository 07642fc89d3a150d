"""One product by a rounded weight, with the gradients of all that goes into it.

Where there is a kernel for it, a float32 product is the integer one of the packed layer: exact, and faster than floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor

from mote_quant.kernels.cpu import library, ternary
from mote_quant.qat.fake import scale_gradient
from mote_quant.qat.latent import Latent
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import ScaledBits

PARAMETERS = ("weight", "bias", "weight_scale")
"""What is trained of a layer, in the order of `Product.to_parameters`."""
KEPT = ("codes", "scale", "weight", "weight_scale")
"""What is kept for backward, in the order of `Product.kept`."""


@dataclass(frozen=True)
class Product:
    """`x -> x W^T + b` in `dtype`, where W is `latent`, the rounded weight of `layer`."""

    layer: QatLinear
    latent: Latent
    dtype: torch.dtype

    @classmethod
    def again(cls, layer: QatLinear, kept: Sequence[Any], dtype: torch.dtype) -> Self:
        """The product of which `kept` was kept."""
        codes, scale, *_ = kept
        return cls(layer, Latent(codes, scale, cast(ScaledBits, layer.spec), layer.in_features), dtype)

    @property
    def kept(self) -> tuple[Tensor | None, ...]:
        """What backward needs; of a learned scale also the weight, so that autograd sees it if one of them moves."""
        learned = self.layer.weight_scale
        return self.latent.codes, self.latent.scale, None if learned is None else self.layer.weight, learned

    @property
    def integers(self) -> bool:
        """Whether products of integers can be taken."""
        # In 16 bits a rounded input is not exactly its code times its scale, and would be rounded to other codes.
        fits = self.dtype == torch.float32 and self.latent.packed and self.latent.spec.granularity != "group"
        return fits and _fast_integers()

    def multiply_rounded(self, x: Tensor) -> Tensor:
        """As `multiply`, of `integers`, for an `x` that is rounded to int8: its codes are found again."""
        return ternary.multiply(x, self.latent.codes, self.latent.scale, "2bit", self.layer.out_features, self._bias)

    def multiply(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        bias = self._bias
        product = x.new_empty(len(x), self.layer.out_features)
        for part, values in self.latent.row_parts(self.dtype):
            if bias is None:
                torch.mm(x, values.t(), out=product[:, part])
            else:
                torch.addmm(bias[part], x, values.t(), out=product[:, part])
        return product

    def to_input(self, gradient: Tensor, other: Tensor | None = None) -> Tensor:
        """The gradient of x, from that of the product [n, out]; with `other`, added to that one in place."""
        total = gradient.new_empty(len(gradient), self.layer.in_features) if other is None else other
        beta = 0 if other is None else 1
        for part, values in self.latent.column_parts(self.dtype):
            torch.addmm(total[:, part], gradient, values, beta=beta, out=total[:, part])
        return total

    def to_parameters(self, gradient: Tensor, x: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of PARAMETERS, of those that are `needed`."""
        weight, _, scale = needed
        whole = (gradient.t() @ x).to(self.layer.weight.dtype) if weight or scale else None
        return self.distribute(whole, gradient, needed)

    def distribute(self, whole: Tensor | None, gradient: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
        """The same, given the gradient of the rounded weight (`whole`) and of the product."""
        weight, bias, scale = needed
        return [
            whole if weight else None,
            gradient.sum(0).to(self.layer.bias.dtype) if bias else None,
            self._to_scale(whole) if scale and whole is not None else None,
        ]

    @property
    def _bias(self) -> Tensor | None:
        return None if self.layer.bias is None else self.layer.bias.detach().to(self.dtype)

    def _to_scale(self, gradient: Tensor) -> Tensor | None:
        learned = self.layer.weight_scale
        if learned is None:
            return None
        return scale_gradient(gradient, self.layer.weight, self.latent.spec, learned).to(learned.dtype)


def _fast_integers() -> bool:
    """Plain C++ is slower than the float32 products of torch."""
    return library.level() not in (None, library.Level.portable)
