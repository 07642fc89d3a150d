"""Codes with one scale per tensor, output channel or group: what the ternary and the binary format share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape, TensorSpec, check_tensors, checked_scale
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups, join_groups, split_groups
from mote_quant.recipe.schema import ScaledBits


@dataclass(frozen=True)
class Packing:
    """int8 codes [out, in] <-> uint8 [out, bytes]; `check` raises FormatError for bytes that no codes pack to."""

    per_byte: int
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int], Tensor]
    check: Callable[[Tensor], None]


@dataclass(frozen=True)
class ScaledFormat:
    """`Format` for a `ScaledBits` spec."""

    spec: ScaledBits
    packing: Packing
    paper_bits: float

    def layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """`weight` [out, bytes, 1] and `weight_scale` [1], [out, 1] or [out, groups]."""
        rows, columns = shape
        scale_shapes = {
            "tensor": (1,),
            "channel": (rows, 1),
            "group": (rows, count_groups(self.spec.group_size, columns)),
        }
        return {
            "weight": TensorSpec((rows, -(-columns // self.packing.per_byte), 1), torch.uint8),
            "weight_scale": TensorSpec(scale_shapes[self.spec.granularity], dtype_of(self.spec.scale_dtype)),
        }

    def compress(self, codes: Codes) -> dict[str, Tensor]:
        """int8 codes [out, in] and their scales; there are no zero points."""
        if codes.zero is not None:
            raise FormatError(f"{type(self.spec).__name__} takes no zero points")
        packed = self.packing.pack(codes.codes).unsqueeze(-1)
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
        """int8 codes [out, in]; FormatError for bytes that are no codes."""
        codes = self._unpack(tensors, shape)
        self.packing.check(tensors["weight"])
        return codes

    def _unpack(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        check_tensors(tensors, self.layout(shape))
        return self.packing.unpack(tensors["weight"].squeeze(-1), shape[1])
