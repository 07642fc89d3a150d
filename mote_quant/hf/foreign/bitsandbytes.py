"""bitsandbytes checkpoints, 4-bit (nf4, fp4) and int8. What their tensors mean is in `mote_quant.hf.bnb`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mote_quant.formats import Codes
from mote_quant.hf import bnb
from mote_quant.hf.foreign.base import Layer
from mote_quant.recipe.schema import PackedBits

_STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *_STATES)


@dataclass(frozen=True)
class BitsAndBytes:
    """`Reader` for `quant_method: bitsandbytes`: the tensors describe themselves, the config is not needed."""

    known: ClassVar[frozenset[str]] = frozenset({"weight", "SCB", "weight_format", *(f"weight.{p}" for p in _PARTS)})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> BitsAndBytes:
        """From any `quantization_config`."""
        return cls()

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """A quantization state or int8 scales beside the weight."""
        return bool(bnb.module_names(f"layer.{name}" for name in tensors))

    def spec(self, layer: Layer) -> PackedBits:
        """As the layer's own state has it."""
        return bnb.spec_of(layer.tensors, layer.name)

    def codes(self, layer: Layer) -> Codes:
        """As stored."""
        return bnb.read(layer.tensors, layer.name)[1]
