"""What a budget of `auto` is in whole numbers, and what a choice takes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

from torch import nn

from mote_quant.anatomy.structure import linear_shape
from mote_quant.errors import FormatError
from mote_quant.formats import format_for
from mote_quant.formats.base import Shape
from mote_quant.memory.units import human_bytes, parse_bytes
from mote_quant.recipe.schema import AutoBits, IntegerBits


def rules(autos: Mapping[str, AutoBits]) -> list[tuple[AutoBits, list[str]]]:
    """The modules of each rule: those with one and the same spec object, since equal rules have a budget each."""
    grouped: dict[int, tuple[AutoBits, list[str]]] = {}
    for name, spec in autos.items():
        grouped.setdefault(id(spec), (spec, []))[1].append(name)
    return list(grouped.values())


def shape_of(model: nn.Module, name: str) -> Shape:
    """(out, in) of a linear layer, whichever way round it holds its weight."""
    columns, rows = cast("tuple[int, int]", linear_shape(model.get_submodule(name)))
    return rows, columns


def stored_bytes(spec: IntegerBits, shape: Shape) -> int:
    """Bytes of a stored weight, scales and zero points included."""
    return sum(part.nbytes for part in format_for(spec).layout(shape).values())


def code_bits(spec: IntegerBits, shape: Shape) -> int:
    """Bits of the codes of a weight alone."""
    return int(format_for(spec).paper_bits) * math.prod(shape)


def cost(auto: AutoBits, format: str, shape: Shape) -> int:
    """What a choice for a weight takes of the budget: code bits for `average_bits`, else stored bytes."""
    measure = stored_bytes if auto.average_bits is None else code_bits
    return measure(auto.choice(format), shape)


def limit(auto: AutoBits, weights: int) -> int:
    """The budget for so many weights, in the unit of `cost`. RequestError for a `budget` that is no size."""
    if auto.average_bits is None:
        return parse_bytes(cast(str, auto.budget))
    # As it is written in the recipe: 2.3 times ten weights are 23 bits, though the float 2.3 is a little less.
    return math.floor(Fraction(str(auto.average_bits)) * weights)


def check_budgets(autos: Mapping[str, AutoBits], model: nn.Module) -> None:
    """FormatError for a budget that the smallest choices exceed, with the least that fits. `model` may be on meta."""
    for auto, names in rules(autos):
        shapes = [shape_of(model, name) for name in names]
        weights = sum(math.prod(shape) for shape in shapes)
        least = sum(min(cost(auto, format, shape) for format in auto.choices) for shape in shapes)
        if least > limit(auto, weights):
            asked, smallest = _in_words(auto, least, weights)
            raise FormatError(
                f"auto: {asked} for {len(names)} modules ({names[0]}, ...) is less than their smallest choices take, "
                f"{smallest}; allow at least that, or add a smaller format to choices"
            )


def _in_words(auto: AutoBits, least: int, weights: int) -> tuple[str, str]:
    if auto.average_bits is None:
        return f"a budget of {auto.budget}", f"{least} bytes ({human_bytes(least)})"
    return f"average_bits {auto.average_bits:g}", f"{least / weights:g} bits a weight"
