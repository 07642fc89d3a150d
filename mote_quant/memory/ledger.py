"""One ledger for every model, real or on the meta device, dense, up-cycled or packed.

`paper` counts as the MoTE paper does: matrices of the feed-forward experts only (routed, shared, dense), each weight at
its format's nominal bits (ternary 2), no scales, in GiB. `stored` is every tensor that `save_pretrained` writes, tied
ones once. `resident` is every parameter and buffer held at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mote_quant.anatomy.inventory import Parameter, inventory
from mote_quant.anatomy.roles import roles
from mote_quant.recipe.schema import ROLES, Role

GIB = 2**30
PAPER_ROLES: tuple[Role, ...] = ("routed", "shared", "ffn")


@dataclass(frozen=True)
class RoleWeight:
    """What one role weighs. `parameters` are numbers of the model, however packed; `bits` is what one takes stored."""

    parameters: int
    stored_bytes: int
    resident_bytes: int
    paper_bytes: float

    @property
    def bits(self) -> float:
        """Stored bits per parameter, scales and padding included."""
        return 8 * self.stored_bytes / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class Ledger:
    """What a model weighs, role by role. Roles without a single tensor are left out."""

    roles: dict[Role, RoleWeight]

    @property
    def paper_gib(self) -> dict[str, float]:
        """GiB of `experts` (the sum) and of each expert role, in the paper's accounting."""
        parts: dict[str, float] = {
            role: self.roles[role].paper_bytes / GIB if role in self.roles else 0.0 for role in PAPER_ROLES
        }
        return {"experts": sum(parts.values()), **parts}

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors on disk (the few kilobytes of file headers come on top)."""
        return sum(weight.stored_bytes for weight in self.roles.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of all tensors at run time."""
        return sum(weight.resident_bytes for weight in self.roles.values())

    def to_json(self) -> dict[str, Any]:
        """The shape that `plan --json` and `inspect --json` print."""
        return {
            "paper_gib": self.paper_gib,
            "stored_bytes": self.stored_bytes,
            "resident_bytes": self.resident_bytes,
            "roles": {role: _role_json(weight) for role, weight in self.roles.items()},
        }


def weigh(model: nn.Module, times: Callable[[str], int] = lambda path: 1) -> Ledger:
    """Weigh `model` as it is now; to weigh what a recipe makes of it, apply the recipe on the meta device first.

    `times` says of the path of a module how often it counts, where one stands for several.
    """
    held: dict[Role, list[Parameter]] = {role: [] for role in ROLES}  # type: ignore[misc]
    for parameter in inventory(model):
        held[parameter.role] += [parameter] * times(parameter.module)
    unsaved = dict.fromkeys(held, 0)
    for path, role, buffer in _unsaved_buffers(model):
        unsaved[role] += buffer.nbytes * times(path)
    weights = {role: _role_weight(parameters, unsaved[role]) for role, parameters in held.items()}
    return Ledger({role: weight for role, weight in weights.items() if weight.resident_bytes})


def _role_weight(parameters: list[Parameter], unsaved: int) -> RoleWeight:
    stored = sum(parameter.nbytes for parameter in parameters)
    return RoleWeight(
        parameters=sum(parameter.count for parameter in parameters),
        stored_bytes=stored,
        resident_bytes=stored + unsaved,
        paper_bytes=sum(p.count * p.bits / 8 for p in parameters if p.role in PAPER_ROLES and p.matrix),
    )


def _unsaved_buffers(model: nn.Module) -> Iterator[tuple[str, Role, Tensor]]:
    """Buffers that no file holds (rotary tables), each once, with the role of the place they are in."""
    role_of: Callable[[str], Role] = roles(model)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield path, role_of(path), buffer


def _role_json(weight: RoleWeight) -> dict[str, Any]:
    return {
        "parameters": weight.parameters,
        "bits": round(weight.bits, 4),
        "stored_bytes": weight.stored_bytes,
        "resident_bytes": weight.resident_bytes,
    }
