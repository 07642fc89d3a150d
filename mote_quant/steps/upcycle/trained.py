"""Which projections of the experts are trained for which format, read off the formats a recipe gives them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import nn

from mote_quant.anatomy.structure import under
from mote_quant.errors import FormatError
from mote_quant.moe import MoteLayout, blocks
from mote_quant.moe.layout import PROJECTIONS, Projection
from mote_quant.moe.native import NativeExperts
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Bits, QatBits, trains, wording


def trained_projections(
    layout: MoteLayout, skeleton: nn.Module, formats: Mapping[str, Bits]
) -> dict[Projection, QatBits]:
    """Projection -> the format it is trained for, one for all experts of a layer; FormatError where they differ."""
    given = _given(blocks(skeleton)[layout.path].experts, f"{layout.path}.experts", formats)
    if layout.lora_rank is not None:
        _refuse_low_rank(layout, given)
    return _alike(layout.path, given)


def _given(experts: nn.Module, path: str, formats: Mapping[str, Bits]) -> dict[str, Bits | None]:
    """Every linear layer below `experts`, which lie at `path`, with its format."""
    names = [name for name, module in experts.named_modules() if isinstance(module, nn.Linear)]
    return {f"{path}.{name}": formats.get(f"{path}.{name}") for name in names}


def _alike(path: str, given: Mapping[str, Bits | None]) -> dict[Projection, QatBits]:
    """Projection -> the format it is trained for; FormatError unless all experts of the layer at `path` have it."""
    found: dict[Projection, QatBits] = {}
    for projection in PROJECTIONS:
        specs = {name: spec for name, spec in given.items() if name.rpartition(".")[2] == projection}
        spec = next((spec for spec in specs.values() if trains(spec)), None)
        if spec is not None:
            _refuse_others(path, specs, spec)
            found[projection] = spec
    gated = any(name.endswith(".gate_proj") for name in given)
    _refuse_two_inputs(path, found, gated)
    return found


def _refuse_low_rank(layout: MoteLayout, given: Mapping[str, Bits | None]) -> None:
    for name, spec in given.items():
        if spec is not None and trains(spec):
            raise FormatError(
                f"{name} cannot be {wording(spec)}: experts of lora_rank are trained in full "
                "precision. Leave lora_rank out, or give them an integer or float format"
            )


def _refuse_others(path: str, specs: Mapping[str, Bits | None], spec: QatBits) -> None:
    for name, other in specs.items():
        if other != spec:
            raise FormatError(
                f"{path}: its experts are trained alike, {name.rpartition('.')[2]} for {wording(spec)}, but "
                f"{name.removeprefix(f'{path}.')} is given {_difference(other, spec)}"
            )


def _refuse_two_inputs(path: str, found: Mapping[Projection, QatBits], gated: bool) -> None:
    """Gate and up are given one input: it is rounded to int8 for both or for none."""
    kinds = {name: getattr(found.get(name), "activations", "none") for name in ("gate_proj", "up_proj")}
    if gated and len(set(kinds.values())) > 1:
        said = " and ".join(f"{name} has activations: {kind}" for name, kind in kinds.items())
        raise FormatError(f"{path}: gate_proj and up_proj are given one input, but {said}; give both the same")


def check_trained(
    skeleton: nn.Module, formats: Mapping[str, Bits], layouts: Sequence[MoteLayout], moved: Container[str]
) -> None:
    """FormatError for experts that are not trained for what this recipe asks of them, neither by it nor before it.

    `layouts` are the mixtures it makes, `moved` the parameters that its train steps move.
    """
    for name, spec in formats.items():
        if trains(spec) and not any(under(name, layout.path) for layout in layouts):
            _check(name, skeleton, spec, moved)
    for path, module in skeleton.named_modules():
        if isinstance(module, NativeExperts):
            _alike(path, _given(module, path, formats))


def _check(name: str, skeleton: nn.Module, spec: QatBits, moved: Container[str]) -> None:
    module = skeleton.get_submodule(name)
    if not isinstance(module, QatLinear):
        if any(under(name, path) for path in blocks(skeleton)):
            raise FormatError(
                f"{name} cannot be {wording(spec)}: it is full precision, and this recipe does not up-cycle it. "
                "Up-cycle a dense model with this format, or take an integer or float one"
            )
        if f"{name}.weight" not in moved:
            raise FormatError(
                f"{name} cannot be {wording(spec)}: it is full precision, and no train step of this recipe moves it. "
                "Put one before quantize, as in `train: {what: [routed], data: ...}`, or take an integer or float "
                "format"
            )
    elif module.spec != spec:
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
