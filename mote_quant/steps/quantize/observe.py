"""What calibration shows the linear layers: sums for the methods, a few tokens kept aside to measure errors on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import linear_shape
from mote_quant.steps.quantize.methods import HessianSum, Seen

SAMPLE_ROWS = 512
"""Tokens kept for methods that look at inputs one by one."""
HELD_OUT_ROWS = 256
"""Tokens kept of the held-out batches; the report's output errors are measured on them."""


@dataclass
class Group:
    """Modules that are given one and the same tensor, and what it held. `hessian` is None where nobody needs it."""

    members: list[str]
    tokens: int = 0
    hessian: HessianSum | None = None
    inputs: list[Tensor] = field(default_factory=list)
    held_out: list[Tensor] = field(default_factory=list)


class Observers:
    """Watches the named modules while batches run; batches from number `first_held_out` on are only measured on."""

    def __init__(
        self,
        model: nn.Module,
        needs: Mapping[str, frozenset[str]],
        masks: Sequence[Tensor | None],
        first_held_out: int,
    ) -> None:
        self._model = model
        self._needs = needs
        self._masks = masks
        self._first_held_out = first_held_out
        self._groups: dict[str, Group] = {}
        self._batch = 0
        self._last: tuple[Tensor, Group] | None = None
        self._accepted = set(needs)

    def begin(self, batch: int) -> None:
        """Batch number `batch` runs from now on."""
        self._batch, self._last = batch, None

    def tokens(self, name: str) -> int:
        """Calibration tokens that went into a module."""
        return self._groups[name].tokens if name in self._groups else 0

    def seen(self, name: str) -> Seen | None:
        """What the module's method may look at; None when nothing went in."""
        group = self._groups.get(name)
        if group is None or not group.tokens:
            return None
        hessian = None if group.hessian is None else group.hessian.value()
        return Seen(group.tokens, hessian, torch.cat(group.inputs) if group.inputs else None)

    def held_out(self, name: str) -> Tensor | None:
        """Tokens [rows, in] float32 that no method has seen; None when there are none."""
        group = self._groups.get(name)
        return torch.cat(group.held_out) if group is not None and group.held_out else None

    def forget(self, name: str) -> None:
        """The module is done: what it alone needed is let go."""
        group = self._groups.pop(name, None)
        if group is not None:
            group.members.remove(name)

    @contextmanager
    def watching(self, only: set[str] | None = None) -> Iterator[None]:
        """While open, the inputs of the modules (of those in `only`) are taken down."""
        self._accepted = set(self._needs) if only is None else only
        handles = [
            self._model.get_submodule(name).register_forward_pre_hook(self._hook(name)) for name in self._accepted
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._see(name, args[0])

        return hook

    def _see(self, name: str, x: Tensor) -> None:
        if self._last is not None and self._last[0] is x and self._joins(name, self._last[1]):
            return
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = self._new_group(name)
        self._last = (x, group)
        self._add(group, x)

    def _joins(self, name: str, group: Group) -> bool:
        """Whether the module is one of the group whose tensor has been counted already (or now becomes one)."""
        if name not in self._groups and self._needs[name] == self._needs[group.members[0]]:
            group.members.append(name)
            self._groups[name] = group
        return self._groups.get(name) is group

    def _new_group(self, name: str) -> Group:
        module = self._model.get_submodule(name)
        columns = (linear_shape(module) or (0, 0))[0]
        device = cast(Tensor, module.weight).device
        wanted = "hessian" in self._needs[name]
        return Group([name], hessian=HessianSum(columns, name=name, device=device) if wanted else None)

    def _add(self, group: Group, x: Tensor) -> None:
        rows = self._unpadded(x.detach())
        if self._batch >= self._first_held_out:
            spread = HELD_OUT_ROWS // max(len(self._masks) - self._first_held_out, 1)
            group.held_out.append(_evenly(rows, spread).float())
            return
        group.tokens += len(rows)
        if group.hessian is not None:
            group.hessian.add(rows)
        if "inputs" in self._needs[group.members[0]]:
            group.inputs.append(_evenly(rows, -(-SAMPLE_ROWS // self._first_held_out)).float())

    def _unpadded(self, x: Tensor) -> Tensor:
        """[..., in] -> [tokens, in] without padding, where the tensor still has the batch's shape."""
        mask = self._masks[self._batch] if self._batch < len(self._masks) else None
        if mask is not None and x.shape[:-1] == mask.shape:
            return x[mask.to(x.device)]
        return x.reshape(-1, x.shape[-1])


def _evenly(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]
