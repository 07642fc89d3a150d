"""Which parameters a `train` step moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from mote_quant.anatomy.inventory import inventory
from mote_quant.errors import TargetError
from mote_quant.recipe.targets import select


def trainable_names(model: nn.Module, what: Sequence[str]) -> dict[str, str]:
    """Name -> role of every floating-point parameter that a target of `what` matches.

    TargetError for a target that matches nothing, or only packed weights.
    """
    known = {p.name: p for p in inventory(model)}
    own = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    chosen: dict[str, str] = {}
    for target in what:
        matched = select(target, [p.candidate() for p in known.values()])
        trainable = {candidate.name: candidate.role for candidate in matched if candidate.name in own}
        if not trainable:
            raise TargetError(
                f"train.what: {target} matches only packed weights ({matched[0].name}, ...), which cannot be trained"
            )
        chosen |= trainable
    return chosen


@contextmanager
def only_trainable(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Inside, exactly `names` require gradients; afterwards every flag is what it was."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            # A layer that was packed since has codes where there were floats.
            parameter.requires_grad_(before.get(name, False) and parameter.is_floating_point())
            parameter.grad = None


def by_role(model: nn.Module, chosen: dict[str, str]) -> dict[str, dict[str, int]]:
    """How many values of each role are trained and frozen, for the report."""
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    roles = {p.name: p.role for p in inventory(model)}
    for name, parameter in model.named_parameters():
        (trained if name in chosen else frozen)[roles.get(name, "other")] += parameter.numel()
    return {"trained": dict(trained), "frozen": dict(frozen)}
