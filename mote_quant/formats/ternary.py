"""Ternary weights: codes in {-1, 0, +1} at 2 or 1.6 bits, with one scale per tensor, output channel or group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape, TensorSpec, check_tensors, checked_scale
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups, join_groups, split_groups
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary import packing


@dataclass(frozen=True)
class _Packing:
    per_byte: int
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int], Tensor]
    check: Callable[[Tensor], None]


_PACKINGS = {
    "2bit": _Packing(4, packing.pack_2bit, packing.unpack_2bit, packing.check_2bit),
    "base3": _Packing(5, packing.pack_base3, packing.unpack_base3, packing.check_base3),
}


@dataclass(frozen=True)
class TernaryFormat:
    """`Format` for a `TernaryBits` spec."""

    spec: TernaryBits

    @property
    def paper_bits(self) -> float:
        """The paper counts a ternary weight at 2 bits, however it is packed."""
        return 2.0

    def layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """`weight` [out, bytes, 1] and `weight_scale` [1], [out, 1] or [out, groups]."""
        rows, columns = shape
        scale_shapes = {
            "tensor": (1,),
            "channel": (rows, 1),
            "group": (rows, count_groups(self.spec.group_size, columns)),
        }
        return {
            "weight": TensorSpec((rows, -(-columns // self._packing.per_byte), 1), torch.uint8),
            "weight_scale": TensorSpec(scale_shapes[self.spec.granularity], dtype_of(self.spec.scale_dtype)),
        }

    def compress(self, codes: Codes) -> dict[str, Tensor]:
        """int8 codes [out, in] and their scales; ternary has no zero points."""
        if codes.zero is not None:
            raise FormatError("ternary takes no zero points")
        packed = self._packing.pack(codes.codes).unsqueeze(-1)
        scale_spec = self.layout((codes.codes.shape[0], codes.codes.shape[1]))["weight_scale"]
        return {"weight": packed, "weight_scale": checked_scale(codes.scale, scale_spec)}

    def decompress(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """code * scale in float32, then cast."""
        weight = self._unpack(tensors, shape).float()
        scale = tensors["weight_scale"].float()
        if self.spec.granularity == "group":
            grouped = split_groups(weight, self.spec.group_size).mul_(scale.unsqueeze(-1))
            return join_groups(grouped, shape[1]).to(dtype)
        return weight.mul_(scale).to(dtype)

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """int8 codes [out, in]; FormatError for bytes that are no ternary codes."""
        codes = self._unpack(tensors, shape)
        self._packing.check(tensors["weight"])
        return codes

    @property
    def _packing(self) -> _Packing:
        return _PACKINGS[self.spec.packing]

    def _unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        check_tensors(tensors, self.layout(shape))
        return self._packing.unpack(tensors["weight"].squeeze(-1), shape[1])
