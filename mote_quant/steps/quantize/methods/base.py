"""What a post-training method is: dense weight in, integer codes out. How codes are stored is a matter of formats/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mote_quant.errors import BadWeightsError
from mote_quant.formats import Codes as Codes
from mote_quant.recipe.schema import IntegerBits


@dataclass(frozen=True)
class Seen:
    """What calibration saw go into a linear layer; a method finds what it asked for in `NEEDS`, the rest is None.

    `hessian` is H = 2/n sum x x^T over all n tokens, float32 [in, in]; `inputs` are some of the tokens, float32
    [rows, in]; `tokens` is n.
    """

    tokens: int
    hessian: Tensor | None = None
    inputs: Tensor | None = None


class Method(Protocol):
    """A way to round a weight [out, in] to a spec; `name` is the tensor's name for errors."""

    def __call__(self, weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
        """Raises BadWeightsError for weights that are not finite, CalibrationError for inputs it cannot use."""
        ...


def finite_weight(weight: Tensor, name: str) -> Tensor:
    """The weight [out, in] as detached float32; BadWeightsError if it holds NaN or infinity."""
    values = weight.detach().float()
    if values.dim() != 2:
        raise BadWeightsError(f"{name}: a weight must be [out, in], found {list(values.shape)}")
    if not bool(values.isfinite().all()):
        raise BadWeightsError(f"{name} holds NaN or infinite values; quantization needs finite weights")
    return values
