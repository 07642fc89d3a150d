"""The types that weights have while they are trained, whatever type the model is stored in."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Train

_log = logging.getLogger(__name__)


@contextmanager
def training_types(model: nn.Module, config: Train, chosen: Mapping[str, str]) -> Iterator[None]:
    """Inside, parameters have the types that `config` trains them in; afterwards each has its own again.

    Float32, of all that is computed in it: of what trains (`chosen`: name -> role) always, but for what `latents` holds
    in bfloat16. Weights that did not change come back bit for bit: 16 bits to 32 and back is exact.
    """
    halved = _halved(model, config, chosen)
    if config.latents == "bfloat16" and not halved:
        _log.warning("latents: bfloat16 holds nothing: no trained weight is latent, and precision is float32")
    wanted = {name: torch.bfloat16 if name in halved else torch.float32 for name, _ in model.named_parameters()}
    before = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and parameter.dtype != wanted[name]
        and (name in chosen or config.precision == "float32")
    }
    _cast(model, {name: wanted[name] for name in before})
    try:
        yield
    finally:
        _cast(model, before)


def _halved(model: nn.Module, config: Train, chosen: Mapping[str, str]) -> set[str]:
    """What `latents: bfloat16` holds in it: of what trains the matrices, but for routers and learned scales.

    In float32 only latent ones are multiplied by in another type than their own: that of their input.
    """
    if config.latents != "bfloat16":
        return set()
    modules = dict(model.named_modules())
    latent = {f"{name}.weight" for name, module in modules.items() if isinstance(module, QatLinear)}
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1 and not name.endswith(".weight_scale")}
    held = {name for name in matrices if chosen.get(name, "router") != "router"}
    return held if config.precision == "bfloat16" else held & latent


def _cast(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
