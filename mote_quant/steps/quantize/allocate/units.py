"""What is decided together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mote_quant.anatomy.structure import under
from mote_quant.recipe.schema import AutoBits
from mote_quant.steps.quantize.allocate.budget import rules


@dataclass(frozen=True, eq=False)
class Unit:
    """Modules of one rule that get one format. `name` is theirs, their parent's or their layer's."""

    name: str
    spec: AutoBits
    modules: tuple[str, ...]


def units_of(autos: Mapping[str, AutoBits], layers: Sequence[str]) -> list[Unit]:
    """The units of every rule, in the order of its modules; `layers` are the paths of the decoder layers."""
    units = []
    for spec, names in rules(autos):
        grouped: dict[str, list[str]] = {}
        for name in names:
            grouped.setdefault(_unit_name(name, spec, layers), []).append(name)
        units += [Unit(name, spec, tuple(modules)) for name, modules in grouped.items()]
    return units


def parent(name: str) -> str:
    """The module that holds `name`; what lies at the top stands by itself."""
    return name.rpartition(".")[0] or name


def _unit_name(name: str, spec: AutoBits, layers: Sequence[str]) -> str:
    if spec.decide == "module":
        return name
    if spec.decide == "layer":
        return next((layer for layer in layers if under(name, layer)), parent(name))
    return parent(name)
