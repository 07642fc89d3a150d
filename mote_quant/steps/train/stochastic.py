"""Rounding to bfloat16 up or down at random, so that on average nothing is lost.

Rounded to nearest, an update of less than half a unit in the last of 8 bits is lost every time; rounded so that the
mean is the number itself, small updates add up (arXiv 1502.02551, 2010.06192).

The random bits are a hash of who draws them (seed, step and name of the parameter) and of the element's place in the
whole parameter: they are the same on every device, after a resume, and for however many processes share the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

import torch
from torch import Tensor

_CPU_PART, _PART = 1 << 18, 1 << 24
"""Numbers rounded at a time: on CPU what stays in its cache."""
_KEPT = -1 << 16
"""The bits of a float32 that bfloat16 has too."""
# The finalizer of MurmurHash3 (A. Appleby, public domain) on signed integers: shift right, multiply.
_ROUNDS = ((16, 0x85EBCA6B - (1 << 32)), (13, 0xC2B2AE35 - (1 << 32)))


@dataclass(frozen=True)
class Stream:
    """A sequence of random bits of its own for each seed, step and name."""

    seed: int
    step: int
    name: str

    def bits(self, start: int, count: int, device: torch.device) -> Tensor:
        """16 bits (int32, from 0 to 65535) for each of the elements `start` to `start + count`."""
        factor, term = self._keys
        # One hash is enough for two elements.
        first, odd = divmod(start, 2)
        pairs = torch.arange(count // 2 + 1, dtype=torch.int32, device=device).add_(_signed(first))
        halves = _mix(pairs.mul_(factor | 1).add_(term)).view(torch.int16)
        return halves[odd : odd + count].to(torch.int32).bitwise_and_(0xFFFF)

    @property
    def _keys(self) -> tuple[int, int]:
        digest = blake2b(f"{self.seed} {self.step} {self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "big", signed=True), int.from_bytes(digest[4:], "big", signed=True)


@torch.no_grad()
def round_(values: Tensor, stream: Stream, start: int = 0) -> None:
    """Make every number of `values` (float32, in place) one of its two neighbours in bfloat16, the nearer the likelier.

    `start` is the place of the first in the whole parameter. What bfloat16 can hold, infinities and NaN stay.
    """
    for part, offset in _parts(values):
        bits = part.view(torch.int32)
        rounded = bits.add(stream.bits(start + offset, len(part), part.device)).bitwise_and_(_KEPT)
        # A NaN may have no bit set but those that go, and would become infinite.
        bits.copy_(torch.where(part.isnan(), bits, rounded))


def own_part(parameter: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a parameter, and the place in the whole of its first element.

    Rows are shared out one after the other (FSDP2). Other ways of sharing are rounded as fairly, but draw other bits.
    """
    local = getattr(parameter, "to_local", None)
    if local is None:
        return parameter, 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = cast(Any, parameter)
    _, offset = compute_local_shape_and_global_offset(parameter.shape, sharded.device_mesh, sharded.placements)
    strides = [math.prod(parameter.shape[axis + 1 :]) for axis in range(parameter.dim())]
    return cast(Tensor, local()), sum(at * stride for at, stride in zip(offset, strides, strict=True))


def _parts(values: Tensor) -> Iterator[tuple[Tensor, int]]:
    flat, size = values.view(-1), _CPU_PART if values.device.type == "cpu" else _PART
    return ((flat[offset : offset + size], offset) for offset in range(0, flat.numel(), size))


def _signed(x: int) -> int:
    return (x + (1 << 31)) % (1 << 32) - (1 << 31)


def _mix(x: Tensor) -> Tensor:
    """A hash of each 32-bit number, in place."""
    for shift, factor in _ROUNDS:
        x.bitwise_xor_(_shifted(x, shift)).mul_(factor)
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right; of a negative number the sign would be moved in."""
    return (x >> by).bitwise_and_((1 << 32 - by) - 1)
