"""Which models a GPTQ checkpoint can hold, and why not others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from mote_quant.anatomy.feedforward import expert_holders
from mote_quant.anatomy.structure import decoder_layers, under
from mote_quant.errors import FormatError
from mote_quant.formats.groups import group_width
from mote_quant.formats.integer import BITS
from mote_quant.hf.foreign.gptq import BITS as READABLE
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits

WORD = 32
"""Bits of a word, and the number of inputs that pack to whole words at every width."""


@dataclass(frozen=True)
class Grid:
    """What all quantized layers of a GPTQ checkpoint share."""

    bits: int
    group_size: int
    symmetric: bool

    @classmethod
    def of(cls, spec: IntegerBits) -> Grid:
        """The grid of one layer."""
        return cls(BITS[spec.format], spec.group_size, spec.symmetric)

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{kind} int{self.bits} with group_size {self.group_size}"


def packed_layers(model: nn.Module) -> dict[str, PackedLinear]:
    """The quantized layers of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def common_grid(model: nn.Module) -> Grid:
    """The one grid of all its layers; FormatError, a line a problem, for a model that GPTQ readers could not read."""
    layers = decoder_layers(model)
    experts = [holder for path, layer in layers for holder in expert_holders(path, layer)]
    if experts:
        raise FormatError(
            f"{experts[0]} holds experts, and mixtures are not exported to GPTQ files: export a dense model"
        )
    packed = packed_layers(model)
    if not packed:
        raise FormatError("this model has no quantized layers to export; quantize it first (`mote-quant apply`)")
    problems = [problem for check in CHECKS if (problem := _first(check, packed))]
    outside = [name for name in packed if not any(under(name, path) for path, _ in layers)]
    if outside:
        problems.append(
            f"{outside[0]} is quantized, but GPTQ files hold only decoder layers quantized: keep it in float"
        )
    if problems:
        raise FormatError("\n".join(problems))
    grids = {Grid.of(layer.spec): name for name, layer in packed.items() if isinstance(layer.spec, IntegerBits)}
    if len(grids) > 1:
        found = ", ".join(f"{grid} ({name})" for grid, name in grids.items())
        raise FormatError(f"GPTQ files hold one format: give all quantized layers the same. Found {found}")
    return next(iter(grids))


def _first(check: Callable[[PackedLinear], str | None], packed: Mapping[str, PackedLinear]) -> str | None:
    found = ((name, check(layer)) for name, layer in packed.items())
    return next((f"{name} {problem}" for name, problem in found if problem), None)


def _format(layer: PackedLinear) -> str | None:
    if isinstance(layer.spec, IntegerBits) and BITS[layer.spec.format] in READABLE:
        return None
    return f"is {layer.spec.format}; GPTQ files hold {', '.join(f'int{bits}' for bits in READABLE)}: quantize it so"


def _scales(layer: PackedLinear) -> str | None:
    spec = layer.spec
    if not isinstance(spec, IntegerBits):
        return None
    if spec.scales_inputs:
        return "has a factor for every input (method: awq), which GPTQ files do not hold: quantize it by another method"
    if spec.float_zeros:
        return "has zero points between the codes (method: hqq), GPTQ files hold whole ones: take symmetric: true"
    if spec.scale_dtype != "float16":
        return f"has scales in {spec.scale_dtype}, GPTQ files hold float16: quantize it with scale_dtype: float16"
    return None


def _sizes(layer: PackedLinear) -> str | None:
    spec, columns, rows = layer.spec, layer.in_features, layer.out_features
    if not isinstance(spec, IntegerBits):
        return None
    if columns % group_width(spec.group_size, columns):
        return (
            f"has {columns} inputs, which group_size {spec.group_size} does not divide: quantize it with one that does"
        )
    if columns % WORD or rows * BITS[spec.format] % WORD:
        return f"is {rows} by {columns}, which does not pack to whole 32-bit words: keep it in float"
    return None


CHECKS: tuple[Callable[[PackedLinear], str | None], ...] = (_format, _scales, _sizes)
"""Each says what is wrong with a layer and what to do, or None."""
