"""What a run is refused for before anything is changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from mote_quant.errors import FingerprintError, RequestError
from mote_quant.fingerprint import differences
from mote_quant.hf.lesson_store import check_cache
from mote_quant.hf.teacher import check_same_states, open_teacher
from mote_quant.options import Options
from mote_quant.parallel import Sharding
from mote_quant.planning import Plan, plan_on
from mote_quant.progress import NOTICE
from mote_quant.ranks import gathered, ranks
from mote_quant.recipe import Recipe
from mote_quant.recipe.schema import Train, trains
from mote_quant.steps.quantize.backends import require
from mote_quant.steps.train import require_library, require_shards

_log = logging.getLogger(__name__)


def check_company(recipe: Recipe, sharding: Sharding | None) -> None:
    """RequestError where several processes have nothing to share, or cannot share it in the way they are to."""
    if not ranks().several:
        return
    for config in trained(recipe) if sharding == "fsdp2" else ():
        require_shards(config.optimizer)
    if not trained(recipe):
        raise RequestError(
            f"nothing in this recipe trains, and {ranks().world} processes would all do the same: start one, without "
            "torchrun or accelerate launch"
        )


def say_what_is_idle(recipe: Recipe, options: Options) -> None:
    """A notice of what was asked for and is of no use here."""
    asked = {"log_to": options.log_to, "sharding": options.sharding == "fsdp2"}
    idle = [name for name, is_asked in asked.items() if is_asked]
    if idle and not trained(recipe):
        _log.log(NOTICE, "nothing in this recipe trains: no use is made of %s", " and ".join(idle))
    elif asked["sharding"] and not ranks().several:
        alone = "fsdp2 has nothing to share: this is one process (WORLD_SIZE is 1); start several with torchrun"
        _log.log(NOTICE, "%s", alone)


def trained(recipe: Recipe) -> list[Train]:
    """The train steps of a recipe."""
    return [step.config for step in recipe.pipeline if isinstance(step.config, Train)]


def planned(recipe: Recipe, skeleton: nn.Module) -> Plan:
    """The plan, where all that it takes is installed: MissingExtraError now, not when training is over."""
    plan = plan_on(recipe, skeleton)
    for spec in plan.formats.values():
        require(getattr(spec, "backend", "own"))
    for config in trained(recipe):
        require_library(config.optimizer)
        if config.distill is not None and config.distill.cache is not None:
            check_cache(config.distill.cache)
    rounded = any(step.name == "quantize" for step in recipe.pipeline)
    if rounded and plan.layouts and not plan.trained and any(trains(spec) for spec in plan.formats.values()):
        _log.warning("no step trains the routed experts: they are copies of the dense network, rounded; expect little")
    return plan


def teacher_for(recipe: Recipe, student: nn.Module, processor: Any, name: str) -> nn.Module:
    """The teacher of that name, which can teach what `recipe` wants of it."""
    teacher = open_teacher(name, student, processor)
    if any(c.distill and c.distill.teacher == name and c.distill.hidden for c in trained(recipe)):
        check_same_states(name, teacher, student)
    return teacher


def same_everywhere(fingerprint: Mapping[str, Any]) -> None:
    """FingerprintError where processes of one run were given different things."""
    for rank, other in enumerate(gathered(fingerprint)):
        if details := "; ".join(differences(fingerprint, other)):
            raise FingerprintError(f"process {rank} of this run works on something else than process 0: {details}")
