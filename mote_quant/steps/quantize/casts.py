"""Floating-point formats: parameters change type; a linear layer that then differs from the model casts on use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mote_quant.anatomy.structure import ask
from mote_quant.errors import FormatError
from mote_quant.formats import dtype_of
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import FloatBits

Types = frozenset[torch.dtype]
_CAST_ON_USE = (CastLinear, PackedLinear, QatLinear)


@dataclass(frozen=True)
class Mains:
    """The type the whole model computes in before and after all casts of a recipe."""

    before: torch.dtype
    after: torch.dtype


def cast_parameters(
    model: nn.Module,
    casts: Mapping[str, FloatBits],
    mains: Mains | None = None,
    within: Callable[[str], bool] = lambda name: True,
) -> None:
    """Give each named parameter its type, in place. FormatError where the model could not compute with the result.

    A model that is cast part by part names its `mains` (else they are read off it), and the modules of the part.
    """
    before, main_before = _own_types(model), main_dtype(model)
    parameters = dict(model.named_parameters())
    for name, spec in casts.items():
        parameters[name].data = parameters[name].data.to(dtype_of(spec.format))
    mains = mains or Mains(main_before, main_dtype(model))
    for name, types in _own_types(model).items():
        # What stood apart before and was not touched (a tower kept in float32) knows how to.
        stood_apart = types == before[name] and types != {mains.before}
        if within(name) and types != {mains.after} and not stood_apart:
            _fit(model, name, types, mains.after)


def main_dtype(model: nn.Module) -> torch.dtype:
    """The type the model computes in: that of its input embedding."""
    weight = getattr(ask(model, "get_input_embeddings"), "weight", None)
    return next(model.parameters()).dtype if weight is None else cast(Tensor, weight).dtype


def _own_types(model: nn.Module) -> dict[str, Types]:
    """The types of the floating-point parameters of each module that has some of its own."""
    types = {
        name: frozenset(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())
        for name, module in model.named_modules()
    }
    return {name: own for name, own in types.items() if own}


def _fit(model: nn.Module, name: str, types: Types, main: torch.dtype) -> None:
    module = model.get_submodule(name)
    if isinstance(module, _CAST_ON_USE) or getattr(module, "keeps_float32", False):
        return
    # nn.MultiheadAttention reads the weight of that one class itself and never calls the layer.
    if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear):
        replace_module(model, name, CastLinear.of(module))
        return
    other = str(next(iter(types - {main}))).removeprefix("torch.")
    raise FormatError(
        f"{name} ({type(module).__name__}) cannot be {other} while the model computes in "
        f"{str(main).removeprefix('torch.')}, the type of its input embedding: only linear layers cast on use. "
        "Give both the same format, or drop the rule"
    )
