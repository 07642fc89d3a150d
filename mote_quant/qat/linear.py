"""A linear layer that trains latent weights through their quantized values."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.formats.base import Codes
from mote_quant.formats.registry import format_for
from mote_quant.kernels.watching import fetched
from mote_quant.qat.codes import find_codes
from mote_quant.qat.fake import fake_quantize
from mote_quant.qat.latent import Latent
from mote_quant.recipe.schema import QatBits, ScaledBits
from mote_quant.ternary.activation import fake_quantize_activations
from mote_quant.ternary.quantize import absmean_scale


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which a matrix product with `x` is computed here: under autocast not its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class QatLinear(nn.Linear):
    """`y = x W^T + b` with W replaced by its quantized value in every forward; `weight` holds the latent floats.

    `weight_scale` is the trained float32 scale of `scales: learned`, else None. `strength` is the warm-up ramp: 1 is
    fully quantized, 0 is full precision, of activations too. `keeps` is set by `mote_quant.qat.keeping`.
    """

    weight_scale: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: QatBits,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)
        self.spec = spec
        self.strength = 1.0
        self.keeps = False
        self._kept: tuple[Any, Latent] | None = None
        self.register_parameter("weight_scale", self._new_scale())
        self.fit_scale()

    @torch.no_grad()
    def fit_scale(self) -> None:
        """Start a learned scale from the mean absolute weight, in which the others stay."""
        if self.weight_scale is not None and isinstance(self.spec, ScaledBits):
            # A sharded weight is gathered for it.
            weight = getattr(self.weight, "full_tensor", lambda: self.weight)()
            self.weight_scale.copy_(absmean_scale(weight, self.spec))

    @property
    def rounds_input(self) -> bool:
        """Whether the product is with activations rounded to int8."""
        return isinstance(self.spec, ScaledBits) and self.spec.activations == "int8" and self.strength > 0.0

    @property
    def scaled(self) -> ScaledBits | None:
        """The spec, where the weight is nothing but codes times scales, and is here: not while it is blended in."""
        whole = isinstance(self.spec, ScaledBits) and self.strength >= 1.0 and not fetched(self)
        return cast(ScaledBits, self.spec) if whole else None

    def latent(self) -> Latent:
        """The rounded weight of a layer that is `scaled`, in 2 bits: the one kept, if the weight has not moved."""
        state = self._state() if self.keeps else None
        if state is not None and self._kept is not None and self._kept[0] == state:
            return self._kept[1]
        made = Latent.of(self.weight, cast(ScaledBits, self.spec), self.weight_scale)
        self._kept = None if state is None else (state, made)
        return made

    def release(self) -> None:
        """Keep nothing, from now on."""
        self.keeps, self._kept = False, None

    def quantize_input(self, x: Tensor) -> Tensor:
        """`x` [..., in] as the matrix product will see it."""
        return fake_quantize_activations(x, compute_dtype(x)) if self.rounds_input else x

    def multiply(self, x: Tensor) -> Tensor:
        """The product with an input that `quantize_input` has seen."""
        if fetched(self):
            # A weight that is fetched for each call (accelerate) is not there before: rounding again changes nothing.
            return cast(Tensor, self(x))
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        # What torch.compile traces has no memory of other calls.
        known = self.keeps and self.scaled and not torch.compiler.is_compiling()
        kept = self.latent() if known else None
        weight = fake_quantize(self.weight, self.spec, self.strength, self.weight_scale, x.dtype, kept)
        return F.linear(x, weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self._product(self.quantize_input(input))

    def codes(self) -> Codes:
        """What packing will store."""
        return find_codes(self.weight, self.spec, self.weight_scale)

    def extra_repr(self) -> str:
        """As in nn.Linear, with the format."""
        return f"{super().extra_repr()}, format={self.spec.format}"

    def __getstate__(self) -> dict[str, Any]:
        # What is kept can be made again: it is neither copied nor sent to other processes.
        return self.__dict__ | {"_kept": None}

    def _state(self) -> tuple[Any, ...]:
        """What changes when the weight or its scale is written to or replaced."""
        parts = [part for part in (self.weight, self.weight_scale) if part is not None]
        return (self.spec, *((part._version, part.data_ptr(), part.dtype, part.device) for part in parts))

    def _new_scale(self) -> nn.Parameter | None:
        if not isinstance(self.spec, ScaledBits) or self.spec.scales != "learned":
            return None
        shape = format_for(self.spec).layout((self.out_features, self.in_features))["weight_scale"].shape
        return nn.Parameter(torch.empty(shape, dtype=torch.float32, device=self.weight.device))
