"""A packed weight, as kernels are given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mote_quant.formats.base import Format, Shape


@dataclass(frozen=True)
class PackedWeight:
    """A weight as it is stored, with what is needed to read it.

    `taken` is the op table's memory of what it chose for this weight, by the kind of input.
    """

    tensors: Mapping[str, Tensor]
    shape: Shape
    format: Format
    taken: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
