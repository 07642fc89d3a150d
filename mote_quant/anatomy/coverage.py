"""What every rule of `bits` covers in a model, what it weighs before and after, and what no rule touches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from mote_quant.anatomy.fitting import Place, group_problem, refusal, training_problem
from mote_quant.anatomy.inventory import Parameter, aliases, inventory
from mote_quant.errors import FormatError
from mote_quant.formats import dtype_of, format_for
from mote_quant.recipe.schema import AutoBits, Bits, FloatBits
from mote_quant.recipe.targets import assign


@dataclass(frozen=True)
class Row:
    """A line of the coverage table: one rule, or (`format` None) what no rule touches of the role `target`.

    `tensors` is how many tensors the rule changes and `weights` how many numbers they hold; bytes include scales.
    """

    target: str
    format: str | None
    tensors: int
    weights: int
    bytes_before: int
    bytes_after: int


def assign_bits(bits: Mapping[str, Bits], model: nn.Module) -> dict[str, Bits]:
    """What becomes of each weight: module name -> packed format, parameter name -> float type; the first rule wins.

    A packed format takes the weight matrices its target means and leaves what lies beside them (biases) alone. Raises
    TargetError for a target that means nothing, FormatError (one line a problem) for a format a target cannot take.
    """
    return {_key(name, place): place.bits for name, place in _changes(bits, model).items()}


def coverage(bits: Mapping[str, Bits], model: nn.Module) -> list[Row]:
    """One row a rule, in their order, then one a role for what stays as it is. Errors as `assign_bits`."""
    changes = _changes(bits, model)
    held = {parameter.name: parameter for parameter in inventory(model)}
    by_rule: dict[str, list[str]] = {target: [] for target in bits}
    for name, place in changes.items():
        by_rule[place.target].append(name)
    by_role: dict[str, list[str]] = {}
    for name, parameter in held.items():
        if name not in changes:
            by_role.setdefault(parameter.role, []).append(name)
    rules = [_row(target, bits[target].format, names, held, changes) for target, names in by_rule.items()]
    return rules + [_row(role, None, names, held, changes) for role, names in by_role.items()]


def _changes(bits: Mapping[str, Bits], model: nn.Module) -> dict[str, Place]:
    """Parameter name (as the inventory lists it) -> the place whose rule changes it."""
    held = inventory(model)
    named = {parameter.name: parameter for parameter in [*held, *aliases(model)]}
    targets = assign(list(bits), [parameter.candidate() for parameter in named.values()])
    places = [
        Place(named[name], target, bits[target], model.get_submodule(named[name].module))
        for name, target in targets.items()
    ]
    problems = list(_problems(places))
    if problems:
        raise FormatError("\n".join(problems))
    listed = {parameter.name for parameter in held}
    changes: dict[str, Place] = {}
    for place in places:
        if place.fits:
            # A tied weight may be meant by either of its names; the rule that comes first wins.
            changes.setdefault(_listed_name(place.parameter, listed), place)
    return changes


def _listed_name(parameter: Parameter, listed: set[str]) -> str:
    return parameter.name if parameter.name in listed else parameter.tied_to or parameter.name


def _problems(places: list[Place]) -> Iterator[str]:
    """Rule by rule: one that changes nothing at all, and weights that cannot take what it says."""
    by_rule: dict[str, list[Place]] = {}
    for place in places:
        by_rule.setdefault(place.target, []).append(place)
    for rule in by_rule.values():
        # A rule is about weights; the biases beside them may come along but do not make it one that fits.
        weights = [place for place in rule if place.parameter.matrix] or rule
        if not any(place.fits for place in weights):
            yield refusal(weights[0])
        for check in (training_problem, group_problem):
            yield from [problem for place in rule if (problem := check(place))][:1]


def _key(name: str, place: Place) -> str:
    return name if isinstance(place.bits, FloatBits) else place.parameter.module


def _row(
    target: str,
    format: str | None,
    names: list[str],
    held: Mapping[str, Parameter],
    changes: Mapping[str, Place],
) -> Row:
    return Row(
        target=target,
        format=format,
        tensors=len(names),
        weights=sum(held[name].count for name in names),
        bytes_before=sum(held[name].nbytes for name in names),
        bytes_after=sum(_bytes_after(held[name], changes.get(name)) for name in names),
    )


def _bytes_after(parameter: Parameter, change: Place | None) -> int:
    if change is None:
        return parameter.nbytes
    if isinstance(change.bits, FloatBits):
        return math.prod(parameter.shape) * dtype_of(change.bits.format).itemsize
    spec = change.bits.uniform if isinstance(change.bits, AutoBits) else change.bits
    return sum(part.nbytes for part in format_for(spec).layout(change.shape).values())
