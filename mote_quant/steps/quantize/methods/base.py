"""What a post-training method is: dense weight in, integer codes out. How codes are stored is a matter of formats/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mote_quant.errors import BadWeightsError
from mote_quant.recipe.schema import IntegerBits


@dataclass(frozen=True)
class Codes:
    """int16 codes [out, in]; scales [out, groups] in the spec's type; zero points uint8 [out, groups] if asymmetric."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


class Method(Protocol):
    """A way to round a weight [out, in] to a spec; `hessian` is [in, in], `name` is the tensor's name for errors."""

    def __call__(
        self, weight: Tensor, spec: IntegerBits, hessian: Tensor | None = None, *, name: str = "weight"
    ) -> Codes:
        """Raises BadWeightsError for weights that are not finite, CalibrationError for an unusable Hessian."""
        ...


def finite_weight(weight: Tensor, name: str) -> Tensor:
    """The weight [out, in] as detached float32; BadWeightsError if it holds NaN or infinity."""
    values = weight.detach().float()
    if values.dim() != 2:
        raise BadWeightsError(f"{name}: a weight must be [out, in], found {list(values.shape)}")
    if not bool(values.isfinite().all()):
        raise BadWeightsError(f"{name} holds NaN or infinite values; quantization needs finite weights")
    return values
