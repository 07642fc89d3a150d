"""Which projections of the experts are trained for which format, read off the formats a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mote_quant.anatomy.structure import under
from mote_quant.errors import FormatError
from mote_quant.moe import MoteLayout, blocks
from mote_quant.moe.layout import PROJECTIONS, Projection
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Bits, QatBits, trains, wording


def trained_projections(
    layout: MoteLayout, skeleton: nn.Module, formats: Mapping[str, Bits]
) -> dict[Projection, QatBits]:
    """Projection -> the format it is trained for, one for all experts of a layer; FormatError where they differ."""
    linears = [name for name, module in blocks(skeleton)[layout.path].experts.named_modules() if _is_linear(module)]
    given = {name: formats.get(f"{layout.path}.experts.{name}") for name in linears}
    if layout.lora_rank is not None:
        _refuse_low_rank(layout, given)
    found: dict[Projection, QatBits] = {}
    for projection in PROJECTIONS:
        specs = {name: spec for name, spec in given.items() if name.rpartition(".")[2] == projection}
        spec = next((spec for spec in specs.values() if trains(spec)), None)
        if spec is not None:
            _refuse_others(layout, specs, spec)
            found[projection] = spec
    _refuse_two_inputs(layout, found)
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _refuse_low_rank(layout: MoteLayout, given: Mapping[str, Bits | None]) -> None:
    for name, spec in given.items():
        if spec is not None and trains(spec):
            raise FormatError(
                f"{layout.path}.experts.{name} cannot be {wording(spec)}: experts of lora_rank are trained in full "
                "precision. Leave lora_rank out, or give them an integer or float format"
            )


def _refuse_others(layout: MoteLayout, specs: Mapping[str, Bits | None], spec: QatBits) -> None:
    for name, other in specs.items():
        if other != spec:
            raise FormatError(
                f"{layout.path}: its experts are trained alike, {name.rpartition('.')[2]} for {wording(spec)}, but "
                f"experts.{name} is given {_difference(other, spec)}"
            )


def _refuse_two_inputs(layout: MoteLayout, found: Mapping[Projection, QatBits]) -> None:
    """Gate and up are given one input: it is rounded to int8 for both or for none."""
    kinds = {name: getattr(found.get(name), "activations", "none") for name in ("gate_proj", "up_proj")}
    if layout.gate is not None and len(set(kinds.values())) > 1:
        said = " and ".join(f"{name} has activations: {kind}" for name, kind in kinds.items())
        raise FormatError(f"{layout.path}: gate_proj and up_proj are given one input, but {said}; give both the same")


def check_trained(skeleton: nn.Module, formats: Mapping[str, Bits], layouts: tuple[MoteLayout, ...]) -> None:
    """FormatError for experts that this recipe does not make and that were not trained for what it asks of them."""
    for name, spec in formats.items():
        if trains(spec) and not any(under(name, layout.path) for layout in layouts):
            _check(name, skeleton.get_submodule(name), spec)


def _check(name: str, module: nn.Module, spec: QatBits) -> None:
    if not isinstance(module, QatLinear):
        raise FormatError(
            f"{name} cannot be {wording(spec)}: it is full precision, and this recipe does not up-cycle it. "
            "Up-cycle a dense model with this format, or take an integer or float one"
        )
    if module.spec != spec:
        raise FormatError(
            f"{name} was trained as {wording(spec)} with {_difference(module.spec, spec)}, but this recipe asks for "
            f"{_difference(spec, module.spec)}. Ask for the former, or up-cycle a dense model again"
        )


def _difference(spec: Bits | None, other: Bits) -> str:
    """The format of `spec`, or, where that is the same, the settings that are not those of `other`."""
    if spec is None or wording(spec) != wording(other):
        return "none" if spec is None else wording(spec)
    settings: dict[str, Any] = spec.model_dump()
    others = other.model_dump()
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value != others[key])
