"""What every stored format offers: its layout, known before any tensor is made, and the way there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mote_quant.errors import FormatError

Shape = tuple[int, int]
"""(out_features, in_features) of the dense weight."""


@dataclass(frozen=True)
class TensorSpec:
    """The shape and type of one stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes, in memory and in a safetensors file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Codes:
    """A quantized weight before it is stored.

    Integer codes [out, in]; scales and zero points (uint8, None if symmetric) as the format lays them out; `companions`
    are further tensors, under the names that the format's layout gives them.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None
    companions: Mapping[str, Tensor] = field(default_factory=dict)


class Format(Protocol):
    """A packed form of a weight [out, in]: `weight` (uint8, three axes), `weight_scale` and maybe `weight_zero`."""

    @property
    def paper_bits(self) -> float:
        """Bits a weight counts in the paper's accounting, scales left out."""
        ...

    def layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """Exactly the tensors that `compress` returns for a weight of this shape."""
        ...

    def compress(self, codes: Codes) -> dict[str, Tensor]:
        """Codes with their scales (and zero points) -> stored tensors; FormatError if they do not fit."""
        ...

    def decompress(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """Stored tensors -> dense weight [out, in], computed in float32, then cast. Checks shapes, not values."""
        ...

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Stored tensors -> the codes [out, in] given to `compress`; FormatError for bytes that no code packs to."""
        ...


def check_tensors(tensors: Mapping[str, Tensor], layout: Mapping[str, TensorSpec]) -> None:
    """Raises FormatError for a tensor that is missing or is not what the layout says."""
    for name, spec in layout.items():
        if name not in tensors:
            raise FormatError(f"packed data lacks {name}; expected {', '.join(layout)}, found {', '.join(tensors)}")
        check_tensor(name, tensors[name], spec)


def check_tensor(name: str, tensor: Tensor, spec: TensorSpec) -> None:
    """Raises FormatError unless the tensor has the shape and type of the spec."""
    if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
        expected = f"{spec.dtype} {list(spec.shape)}"
        raise FormatError(f"{name} must be {expected}, found {tensor.dtype} {list(tensor.shape)}")


def checked_scale(scale: Tensor, spec: TensorSpec, name: str = "weight_scale") -> Tensor:
    """The scales, ready to be stored; FormatError for another shape or type, or values that are not finite."""
    check_tensor(name, scale, spec)
    if not bool(scale.isfinite().all()):
        raise FormatError(f"{name} holds values that are not finite")
    return scale.detach().contiguous()
