"""Group integers of 8 to 2 bits, symmetric or with zero points.

The convention is that of GPTQ checkpoints and compressed-tensors. With b bits, symmetric codes run from -2^(b-1) to
2^(b-1)-1 and stand for code * scale (stored as code + 2^(b-1)); asymmetric codes run from 0 to 2^b-1 and stand for
(code - zero) * scale. `weight_scale` is [out, groups]; `weight_zero` holds the zero points, packed like the weight,
or in the type of the scales for a method that puts them between the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape, TensorSpec, check_tensors, checked_scale
from mote_quant.formats.bits import pack_bits, packed_shape, unpack_bits
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups, join_groups, split_groups
from mote_quant.recipe.schema import IntegerBits

INPUT_SCALE = "weight_input_scale"
"""A factor per input column [in], by which codes * scale is multiplied."""
BITS = {"int8": 8, "int6": 6, "int5": 5, "int4": 4, "int3": 3, "int2": 2}


def code_range(spec: IntegerBits) -> tuple[int, int]:
    """The smallest and the largest code."""
    levels = 2 ** BITS[spec.format]
    return (-levels // 2, levels // 2 - 1) if spec.symmetric else (0, levels - 1)


@dataclass(frozen=True)
class IntegerFormat:
    """`Format` for an `IntegerBits` spec."""

    spec: IntegerBits

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return BITS[self.spec.format]

    @property
    def paper_bits(self) -> float:
        """Bits of one code: scales and zero points are left out."""
        return float(self.bits)

    def layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """`weight`, `weight_scale`, if asymmetric `weight_zero`, and `weight_input_scale` for a method that has it."""
        rows, columns = shape
        groups = count_groups(self.spec.group_size, columns)
        layout = {
            "weight": TensorSpec(packed_shape(rows, columns, self.bits), torch.uint8),
            "weight_scale": TensorSpec((rows, groups), dtype_of(self.spec.scale_dtype)),
        }
        if not self.spec.symmetric:
            layout["weight_zero"] = TensorSpec(packed_shape(rows, groups, self.bits), torch.uint8)
        if self.spec.float_zeros:
            layout["weight_zero"] = layout["weight_scale"]
        if self.spec.scales_inputs:
            layout[INPUT_SCALE] = TensorSpec((columns,), dtype_of(self.spec.scale_dtype))
        return layout

    def compress(self, codes: Codes) -> dict[str, Tensor]:
        """Codes [out, in] of any integer type, scales [out, groups], zero points [out, groups] if asymmetric."""
        values, zero = codes.codes, codes.zero
        self._check_codes("codes", values)
        layout = self.layout((values.shape[0], values.shape[1]))
        stored = {
            "weight": pack_bits((values.short() - code_range(self.spec)[0]).to(torch.uint8), self.bits),
            "weight_scale": checked_scale(codes.scale, layout["weight_scale"]),
        }
        if self.spec.scales_inputs:
            factors = codes.companions.get(INPUT_SCALE, torch.ones(values.shape[1], device=values.device))
            spec = layout[INPUT_SCALE]
            stored[INPUT_SCALE] = checked_scale(factors.to(spec.dtype), spec, INPUT_SCALE)
        if (zero is None) != self.spec.symmetric:
            expected = "no zero points" if self.spec.symmetric else "zero points"
            raise FormatError(f"{self.spec.format} with symmetric: {str(self.spec.symmetric).lower()} takes {expected}")
        if zero is not None:
            stored["weight_zero"] = self._stored_zero(zero, layout["weight_scale"])
        return stored

    def _stored_zero(self, zero: Tensor, spec: TensorSpec) -> Tensor:
        if self.spec.float_zeros:
            return checked_scale(zero.to(spec.dtype), spec, "weight_zero")
        self._check_codes("zero points", zero, spec.shape)
        return pack_bits(zero.to(torch.uint8), self.bits)

    def decompress(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """code * scale, or (code - zero) * scale, times the column's input scale, in float32; then cast."""
        check_tensors(tensors, self.layout(shape))
        stored = unpack_bits(tensors["weight"], self.bits, shape[1]).float()
        weight = split_groups(stored, self.spec.group_size)
        weight -= 2 ** (self.bits - 1) if self.spec.symmetric else self._zero(tensors, shape).float().unsqueeze(-1)
        weight *= tensors["weight_scale"].float().unsqueeze(-1)
        joined = join_groups(weight, shape[1])
        if self.spec.scales_inputs:
            joined *= tensors[INPUT_SCALE].float()
        return joined.to(dtype)

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """int16 codes [out, in] as given to `compress`."""
        check_tensors(tensors, self.layout(shape))
        return unpack_bits(tensors["weight"], self.bits, shape[1]).short() + code_range(self.spec)[0]

    def _zero(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        if self.spec.float_zeros:
            return tensors["weight_zero"]
        return unpack_bits(tensors["weight_zero"], self.bits, count_groups(self.spec.group_size, shape[1]))

    def _check_codes(self, what: str, codes: Tensor, shape: tuple[int, ...] | None = None) -> None:
        if codes.is_floating_point() or codes.dim() != 2 or (shape is not None and tuple(codes.shape) != shape):
            expected = list(shape) if shape else "[out, in]"
            raise FormatError(f"{what} must be integers {expected}, found {codes.dtype} {list(codes.shape)}")
        low, high = code_range(self.spec)
        if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise FormatError(f"{what} of {self.spec.format} must lie between {low} and {high}, found {found}")
