"""Can this parameter take that format? And if not, what can it take?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mote_quant.anatomy.inventory import LINEAR_WEIGHT, Parameter
from mote_quant.anatomy.structure import join, linear_shape
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import AutoBits, Bits, FloatBits, IntegerBits, QatBits, ScaledBits, trains, wording

FLOATS = "float32, bfloat16 or float16"
TRAINED = "ternary, binary"
PACKED = "auto, int8, int6, int5, int4, int3, int2, nf4 or fp4"
# Norms scale elementwise, embeddings are looked up by row, and a router decides by small differences.
FLOAT_ONLY = ("router", "norm", "embedding")
# [E, out, in]: the experts of a layer in one tensor.
FUSED_AXES = 3


@dataclass(frozen=True)
class Place:
    """A parameter, the rule that means it (`target`: `bits`), and the module that holds it."""

    parameter: Parameter
    target: str
    bits: Bits
    module: nn.Module

    @property
    def fits(self) -> bool:
        """Whether the parameter can take the format."""
        if self.trained_for is not None and wording(self.bits) != wording(self.trained_for):
            return False
        if isinstance(self.bits, FloatBits):
            return self.castable and (self.bits.format == "float32" or not self.keeps_float32)
        return self.packable

    @property
    def keeps_float32(self) -> bool:
        """Whether this is of a router whose arithmetic is float32: any of ours, and whatever corrects a native one."""
        ours = getattr(self.module, "keeps_float32", False)
        return self.parameter.role == "router" and (ours or not self.parameter.matrix)

    @property
    def castable(self) -> bool:
        """Whether this is a float tensor of the model, not the scale of a packed one."""
        return self.parameter.dtype.is_floating_point and self.parameter.count > 0

    @property
    def trained_for(self) -> QatBits | None:
        """The format of a latent weight: only its value in that was trained, other roundings of it mean nothing."""
        is_weight = self.parameter.name == join(self.parameter.module, LINEAR_WEIGHT)
        return self.module.spec if isinstance(self.module, QatLinear) and is_weight else None

    @property
    def packable(self) -> bool:
        """Whether this is the dense weight of a linear layer, in whose place a packed one can stand."""
        parameter = self.parameter
        is_weight = parameter.name == join(parameter.module, LINEAR_WEIGHT) and linear_shape(self.module) is not None
        alone = parameter.role not in FLOAT_ONLY and parameter.tied_to is None
        # nn.MultiheadAttention reads the weight of this class itself and never calls the layer.
        called = not isinstance(self.module, NonDynamicallyQuantizableLinear)
        return is_weight and alone and called and self.castable

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of a linear layer, whichever way round it holds its weight."""
        columns, rows = linear_shape(self.module) or (0, 0)
        return rows, columns


def refusal(place: Place) -> str:
    """Says which target asks what of which parameter, why not, and what the parameter takes."""
    parameter = place.parameter
    held = f"{parameter.name} ({', '.join([parameter.role, *_circumstances(place)])})"
    return f"bits.{place.target}: {held} cannot be {wording(place.bits)}; it takes {_takes(place)}"


def training_problem(place: Place) -> str | None:
    """A format that is trained anywhere but in routed experts."""
    if not trains(place.bits) or not place.packable or place.parameter.role == "routed":
        return None
    return f"{refusal(place)}; {wording(place.bits)} is for routed experts only, which are trained for it"


def group_problem(place: Place) -> str | None:
    """Groups longer than the row they divide."""
    spec, (_, columns) = place.bits, place.shape
    size = _group_size(spec)
    if size == -1 or not place.packable:
        return None
    where = f"bits.{place.target}: group_size {size}"
    if size > columns:
        return (
            f"{where} is more than the {columns} input features of {place.parameter.module}; take at most {columns}, "
            "or -1 for the whole row"
        )
    if columns % size and getattr(spec, "uneven", "pad") == "refuse":
        return (
            f"{where} does not divide the {columns} input features of {place.parameter.module}; take one that does, "
            "or uneven: pad for a short last group"
        )
    return None


def _group_size(spec: Bits) -> int:
    """Columns a group; -1 for a format without groups."""
    if isinstance(spec, IntegerBits | AutoBits) or (isinstance(spec, ScaledBits) and spec.granularity == "group"):
        return spec.group_size
    return -1


def _circumstances(place: Place) -> list[str]:
    parameter = place.parameter
    if parameter.tied_to is not None:
        return [f"tied to {parameter.tied_to}"]
    if not place.castable:
        return ["packed already"]
    if place.trained_for is not None:
        return [f"is trained as {wording(place.trained_for)}"]
    return [] if parameter.matrix else ["a vector"]


def _takes(place: Place) -> str:
    parameter = place.parameter
    if parameter.role in FLOAT_ONLY:
        return "float32" if place.keeps_float32 else FLOATS
    if parameter.role == "routed" and len(parameter.shape) == FUSED_AXES:
        one = join(parameter.module, "0.down_proj")
        return f"{FLOATS}; more is open to the role routed as a whole, or to its experts one by one, as {one}"
    if not place.castable:
        return "no other format: leave the rule out, and it stays as it is"
    if place.trained_for is not None:
        return f"{wording(place.trained_for)}, as it was trained"
    if not place.packable:
        return FLOATS
    return f"{TRAINED}, {PACKED}, {FLOATS}" if parameter.role == "routed" else f"{PACKED}, {FLOATS}"
