"""What every candidate will weigh, found on the meta device before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mote_quant.errors import MoteError
from mote_quant.memory.ledger import PAPER_ROLES, Ledger
from mote_quant.planning import skeleton_for
from mote_quant.recipe import Recipe, load
from mote_quant.sweeps.alike import Scales
from mote_quant.sweeps.cells import AGAIN, Job, Result


def run(job: Job) -> Result:
    """settings: model (anything `plan` takes), recipes (name -> mapping), tasks."""
    recipes = {name: load(recipe) for name, recipe in job.settings["recipes"].items()}
    tasks = _checked(job.settings["tasks"])
    # What is missing today may be installed, or written, tomorrow.
    again = {AGAIN: True} if any(tasks.values()) else {}
    return weighed(job.settings["model"], recipes) | {"tasks": tasks} | again


def weighed(model: Any, recipes: Mapping[str, Recipe]) -> Result:
    """`weights`: name -> byte counts, or the `error` that leaves it without; `dense_bytes`."""
    skeleton = skeleton_for(model)
    return {"dense_bytes": dense_bytes(skeleton), "weights": weighed_on(skeleton, recipes)}


def weighed_on(skeleton: nn.Module, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Name -> byte counts, or the `error` that leaves it without, on a meta-device model."""
    scales = Scales.of(skeleton)
    return {name: _weighed(recipe, scales) for name, recipe in recipes.items()}


def _checked(tasks: Sequence[str]) -> dict[str, str | None]:
    """Task -> why it cannot be had; None for one that can."""
    from mote_quant.evaluate.harness import check_tasks

    errors: dict[str, str | None] = dict.fromkeys(tasks)
    for task in tasks:
        try:
            check_tasks([task], data=True)
        except MoteError as error:
            errors[task] = error.message
    return errors


def dense_bytes(skeleton: nn.Module) -> int:
    """Bytes of the dense feed-forward blocks in bfloat16: what relative budgets are relative to."""
    from mote_quant.anatomy.feedforward import find_feedforwards

    blocks = find_feedforwards(skeleton)
    return sum(2 * block.hidden_size * block.intermediate_size * (3 if block.gate else 2) for block in blocks)


def expert_bytes(ledger: Ledger) -> dict[str, int]:
    """The feed-forward experts (routed, shared, dense) in the three accountings, and the whole model."""
    experts = [weight for role, weight in ledger.roles.items() if role in PAPER_ROLES]
    return {
        "paper_bytes": round(sum(weight.paper_bytes for weight in experts)),
        "stored_bytes": sum(weight.stored_bytes for weight in experts),
        "resident_bytes": sum(weight.resident_bytes for weight in experts),
        "model_stored_bytes": ledger.stored_bytes,
        "model_resident_bytes": ledger.resident_bytes,
    }


def _weighed(recipe: Recipe, scales: Scales) -> dict[str, Any]:
    try:
        return expert_bytes(scales.weigh(recipe))
    except MoteError as error:
        return {"error": error.message}
