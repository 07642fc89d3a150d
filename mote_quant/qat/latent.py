"""A latent weight as products see it, in its codes: all that a forward keeps of it for its backward.

Float values of a rounded weight would be a second copy of it in memory from forward to backward. Its codes are a
sixteenth of that (2 bits; a byte without native quantizers), and are expanded when they are multiplied by, a part of
one weight at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, lcm

import torch
from torch import Tensor

from mote_quant.qat.codes import scale_of
from mote_quant.recipe.schema import ScaledBits
from mote_quant.ternary.packing import CODES_PER_BYTE
from mote_quant.ternary.quantize import absolute_sums, compact_codes, compact_values

LARGEST_PART = 16 << 20
"""Bytes expanded at a time on CPU: from 32 MB on glibc takes every tensor anew from the system, page by page."""


@dataclass(frozen=True)
class Latent:
    """A rounded weight [out, columns]: `compact_codes` and the scales that packing would store."""

    codes: Tensor
    scale: Tensor
    spec: ScaledBits
    columns: int

    @classmethod
    def of(cls, weight: Tensor, spec: ScaledBits, learned: Tensor | None = None) -> Latent:
        """As the weight and its learned scale, if it has one, are now."""
        scale = scale_of(weight, spec, learned)
        if learned is not None:
            # Codes cannot hold NaN, and unlike a mean a learned scale does not become it with the weights.
            scale = (scale + 0.0 * absolute_sums(weight.detach(), spec)).to(scale.dtype)
        return cls(compact_codes(weight, scale, spec), scale, spec, weight.shape[1])

    @property
    def packed(self) -> bool:
        """Whether the codes are those of a packed layer, 2 bits each."""
        return self.codes.dtype == torch.uint8

    def values(self, dtype: torch.dtype) -> Tensor:
        """The rounded weight [out, columns]."""
        return compact_values(self.codes, self.columns, self.scale, self.spec, dtype)

    def write(self, out: Tensor) -> None:
        """The same, into a tensor [out, columns]."""
        for part, values in self.row_parts(out.dtype):
            out[part] = values

    def row_parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The rounded weight, some rows after the other, each part where it belongs."""
        for part in self._parts(len(self.codes), 1, dtype):
            scale = self.scale if self.spec.granularity == "tensor" else self.scale[part]
            yield part, replace(self, codes=self.codes[part], scale=scale).values(dtype)

    def column_parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The same by columns."""
        per_byte = CODES_PER_BYTE["2bit"] if self.packed else 1
        group = self.spec.group_size if self.spec.granularity == "group" else 1
        for part in self._parts(self.columns, lcm(per_byte, group), dtype):
            scale = self.scale if group == 1 else self.scale[:, part.start // group : ceil(part.stop / group)]
            codes = self.codes[:, part.start // per_byte : ceil(part.stop / per_byte)].contiguous()
            yield part, Latent(codes, scale, self.spec, part.stop - part.start).values(dtype)

    def _parts(self, length: int, unit: int, dtype: torch.dtype) -> Iterator[slice]:
        """Slices of `length` rows or columns, of whole units, none much larger than LARGEST_PART."""
        size = len(self.codes) * self.columns * dtype.itemsize
        count = max(1, ceil(size / LARGEST_PART)) if self.codes.device.type == "cpu" else 1
        step = max(1, ceil(length / count / unit)) * unit
        return (slice(start, min(start + step, length)) for start in range(0, length, step))
