"""The op table: each operation on packed weights with its implementations, fastest first, the torch reference last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mote_quant.formats.base import Format, Shape
from mote_quant.kernels import bnb


@dataclass(frozen=True)
class PackedWeight:
    """A weight as it is stored, with what is needed to read it."""

    tensors: Mapping[str, Tensor]
    shape: Shape
    format: Format


Matmul = Callable[[Tensor, PackedWeight, Tensor | None], Tensor]
"""(x [..., in], packed weight [out, in], bias [out] or None) -> [..., out] in the type of x."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op; `supports` says for which inputs it can be taken, `installed` whether ever."""

    name: str
    matmul: Matmul
    supports: Callable[[Tensor, PackedWeight], bool]
    installed: Callable[[], bool] = lambda: True


def _reference(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.format.decompress(weight.tensors, weight.shape, x.dtype), bias)


_TORCH = Implementation("torch", _reference, supports=lambda x, weight: True)
_BITSANDBYTES = Implementation("bitsandbytes", bnb.matmul, bnb.supports, bnb.installed)

OPS: Mapping[str, tuple[Implementation, ...]] = {
    "ternary_matmul": (_TORCH,),
    "binary_matmul": (_TORCH,),
    "int_matmul": (_TORCH,),
    "codebook_matmul": (_BITSANDBYTES, _TORCH),
}


def ternary_matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x @ ternary weight^T + bias; x has been rounded to int8 per token already where the spec asks for it."""
    return _select("ternary_matmul", x, weight).matmul(x, weight, bias)


def binary_matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x @ binary weight^T + bias; of x as in `ternary_matmul`."""
    return _select("binary_matmul", x, weight).matmul(x, weight, bias)


def int_matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x @ group-integer weight^T + bias."""
    return _select("int_matmul", x, weight).matmul(x, weight, bias)


def codebook_matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x @ weight^T + bias, each code an index into a table of 16 values."""
    return _select("codebook_matmul", x, weight).matmul(x, weight, bias)


def implementations() -> dict[str, str]:
    """The name of the first choice for every op, of those installed."""
    return {op: next(choice.name for choice in choices if choice.installed()) for op, choices in OPS.items()}


def _select(op: str, x: Tensor, weight: PackedWeight) -> Implementation:
    return next(implementation for implementation in OPS[op] if implementation.supports(x, weight))
