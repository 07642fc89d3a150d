"""Floating-point formats: parameters change type; a linear layer that then differs from the model casts on use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import ask
from mote_quant.errors import FormatError
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.recipe.schema import FloatBits
from mote_quant.ternary.linear import TernaryLinear


def cast_parameters(model: nn.Module, casts: Mapping[str, FloatBits]) -> None:
    """Give each named parameter its type, in place. FormatError where the model could not compute with the result."""
    parameters = dict(model.named_parameters())
    for name, spec in casts.items():
        parameters[name].data = parameters[name].data.to(getattr(torch, spec.format))
    main = main_dtype(model)
    for name in dict.fromkeys(name.rpartition(".")[0] for name in casts):
        _fit(model, name, main, casts)


def main_dtype(model: nn.Module) -> torch.dtype:
    """The type the model computes in: that of its input embedding."""
    weight = getattr(ask(model, "get_input_embeddings"), "weight", None)
    return next(model.parameters()).dtype if weight is None else cast(Tensor, weight).dtype


def _fit(model: nn.Module, name: str, main: torch.dtype, casts: Mapping[str, FloatBits]) -> None:
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        if module.weight.dtype != main and not isinstance(module, TernaryLinear):
            replace_module(model, name, CastLinear.of(module))
        return
    own = {p.dtype for key, p in module.named_parameters(recurse=False) if f"{name}.{key}" in casts}
    if own - {main} and not getattr(module, "keeps_float32", False):
        kept = str(next(iter(own - {main}))).removeprefix("torch.")
        raise FormatError(
            f"{name} ({type(module).__name__}) cannot be {kept} while the model computes in "
            f"{str(main).removeprefix('torch.')}: only linear layers cast on use. "
            "Give the embedding the same format, or drop the rule"
        )
