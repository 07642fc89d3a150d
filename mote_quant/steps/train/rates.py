"""The groups of parameters that an optimizer treats differently: with a rate of their own, with weight decay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from mote_quant.anatomy.inventory import inventory
from mote_quant.errors import TargetError
from mote_quant.recipe.schema import Train
from mote_quant.recipe.targets import assign


def parameter_groups(
    model: nn.Module, chosen: Mapping[str, str], config: Train, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """What trains (`chosen`: name -> role), by rate, with weight decay and without: `decayed` names may have it.

    TargetError for one of `learning_rates` that means nothing that trains.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
    owner = rate_owners(model, chosen, config)
    groups = []
    for target in (None, *config.learning_rates):
        rate = {} if target is None else {"lr": config.learning_rates[target]}
        for decay, among in ((config.weight_decay, True), (0.0, False)):
            names = [name for name in named if owner.get(name) == target and (name in decayed) is among]
            groups.append({"params": [named[name] for name in names], "weight_decay": decay, **rate})
    return groups


def rate_owners(model: nn.Module, chosen: Mapping[str, str], config: Train) -> dict[str, str]:
    """Name -> the target of `learning_rates` that gives it its rate, for what does not take `learning_rate`."""
    if not config.learning_rates:
        return {}
    trained = [parameter.candidate() for parameter in inventory(model) if parameter.name in chosen]
    try:
        return assign([*config.learning_rates], trained)
    except TargetError as error:
        raise TargetError(f"train.learning_rates, of what is trained: {error.message}") from error


def rates_in_words(model: nn.Module, chosen: Mapping[str, str], config: Train) -> dict[str, Any]:
    """For the report: target -> its rate and how many values take it; nothing where all take the same."""
    owner = rate_owners(model, chosen, config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    told = {
        target: {"rate": rate, "values": sum(sizes[name] for name, by in owner.items() if by == target)}
        for target, rate in config.learning_rates.items()
    }
    return {"learning_rates": told} if told else {}
