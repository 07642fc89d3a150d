"""The groups of parameters that an optimizer treats differently."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from mote_quant.recipe.schema import Train


def parameter_groups(
    model: nn.Module, chosen: Mapping[str, str], config: Train, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """What trains (`chosen`: name -> role), with weight decay and without: `decayed` are names that may have it."""
    named = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
    split = {True: [n for n in named if n in decayed], False: [n for n in named if n not in decayed]}
    return [
        {"params": [named[name] for name in names], "weight_decay": config.weight_decay if decays else 0.0}
        for decays, names in split.items()
    ]
