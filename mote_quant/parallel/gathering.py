"""Sharded weights come back to an ordinary model, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.parallel.sharding import at_rest, whole
from mote_quant.qat.codes import find_codes
from mote_quant.qat.linear import QatLinear


class Place(NamedTuple):
    """Where a parameter stands: `module.name`, which is `path` in the model."""

    module: nn.Module
    name: str
    path: str


def let_go(model: nn.Module, kept: Collection[nn.Parameter]) -> None:
    """Leave every parameter of `model` but those `kept` without a value: it lives sharded, elsewhere."""
    keeps = {id(parameter) for parameter in kept}
    for parameter, places in _places(model):
        if id(parameter) not in keeps:
            _put(places, nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad))


@torch.no_grad()
def bring_back(trained: nn.Module, model: nn.Module, pack: bool) -> None:
    """Give `model` the values of `trained`, its sharded twin; every process has to ask, and gets them.

    With `pack` the latent layers of `model` become packed ones, by the function that packs any other.
    """
    at_rest(trained)
    layers = {name: module for name, module in trained.named_modules() if pack and isinstance(module, QatLinear)}
    sharded = dict(trained.named_parameters(remove_duplicate=False))
    for parameter, places in _places(model):
        value = sharded.get(places[0].path)
        if isinstance(value, DTensor) and places[0].path.rpartition(".")[0] not in layers:
            _put(places, nn.Parameter(whole(value.detach()), parameter.requires_grad))
    for name, module in model.named_modules():
        module._buffers.update(trained.get_submodule(name)._buffers)
    for name, layer in layers.items():
        replace_module(model, name, _packed(layer))


def _packed(layer: QatLinear) -> PackedLinear:
    weight = whole(layer.weight.detach())
    bias, scale = (None if part is None else whole(part.detach()) for part in (layer.bias, layer.weight_scale))
    return PackedLinear.pack(layer.spec, find_codes(weight, layer.spec, scale), bias, weight.dtype)


def _places(model: nn.Module) -> list[tuple[nn.Parameter, list[Place]]]:
    """Every parameter once, with all the places where it stands: what is tied stays tied."""
    found: dict[int, tuple[nn.Parameter, list[Place]]] = {}
    for place, parameter in _standing(model):
        found.setdefault(id(parameter), (parameter, []))[1].append(place)
    return list(found.values())


def _standing(model: nn.Module) -> Iterator[tuple[Place, nn.Parameter]]:
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield Place(module, name, f"{path}.{name}" if path else name), parameter


def _put(places: list[Place], parameter: nn.Parameter) -> None:
    for place in places:
        setattr(place.module, place.name, parameter)
