"""All that a training has to remember, between a live Trainer and a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.hf import random_state
from mote_quant.hf.checkpoint import Checkpoint, Saved
from mote_quant.progress import NOTICE
from mote_quant.ranks import ranks

_log = logging.getLogger(__name__)
_VALUES = "values"


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Any]) -> Checkpoint:
    """What trains, the optimizer's state of it and this process's random state, beside `values`."""
    names = trained(model)
    tensors: dict[str, Tensor] = {f"model.{name}": parameter.detach() for name, parameter in names.items()}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    own, random_values = random_state.capture()
    # Of numpy and Python: JSON, which every process has its own of.
    own[_VALUES] = torch.frombuffer(bytearray(json.dumps(random_values).encode()), dtype=torch.uint8)
    return Checkpoint(tensors, {**values, "groups": list(_groups(names, optimizer))}, own)


def _groups(names: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    """The settings of each group of parameters, and whose they are."""
    by_id = {id(parameter): name for name, parameter in names.items()}
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        yield {"names": [by_id[id(parameter)] for parameter in group["params"]], "settings": settings}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what trains."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def restore_model(saved: Saved, model: nn.Module) -> None:
    """Put what trains back to what it was."""
    for name, parameter in trained(model).items():
        parameter.copy_(saved.like(f"model.{name}", parameter))


def restore_optimizer(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's states and the settings of its groups, by the names of parameters."""
    names = trained(model)
    settings = {name: group["settings"] for group in saved.values["groups"] for name in group["names"]}
    by_id = {id(parameter): name for name, parameter in names.items()}
    for group in filter(lambda group: group["params"], optimizer.param_groups):
        group.update(settings[by_id[id(group["params"][0])]])
    for key in saved.names("optimizer"):
        name, _, kind = key.rpartition(".")
        parameter = names[name]
        optimizer.state[parameter][kind] = _state(saved, f"optimizer.{key}", parameter)


def schedule_of(scheduler: Any) -> dict[str, Any]:
    """How far a schedule of learning rates is; the rates themselves are settings of the optimizer's groups."""
    return {key: value for key, value in scheduler.state_dict().items() if isinstance(value, int | bool)}


def restore_schedule(state: dict[str, Any], scheduler: Any) -> None:
    """Go on from there, with as many groups as there are now (their settings restored already)."""
    scheduler.__dict__.update(state)
    groups = scheduler.optimizer.param_groups
    scheduler._last_lr = [group["lr"] for group in groups]
    scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]


def _state(saved: Saved, name: str, parameter: Tensor) -> Tensor:
    """A state that has the shape of its parameter is where that is, and sharded like it; others are counters."""
    if saved.shape(name) == tuple(parameter.shape) != ():
        return saved.like(name, parameter)
    return saved.rows(name, 0, None)


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def restore_random(saved: Saved, seed: int) -> None:
    """This process's random state; one that has none there begins its own, from `seed`."""
    if saved.world != ranks().world:
        _log.log(
            NOTICE,
            "this checkpoint was written by %s, now there %s: what follows is the same up to rounding",
            _processes(saved.world),
            f"{'is' if ranks().world == 1 else 'are'} {_processes(ranks().world)}",
        )
    own = saved.own()
    if own is None:
        torch.manual_seed(seed + ranks().rank)
        return
    random_state.restore(own, json.loads(bytes(own.pop(_VALUES).tolist())))
