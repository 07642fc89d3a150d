"""What lies in memory while a model that holds no numbers is run: every operation on fake tensors, and what it made.

Two things that only numbers could tell are taken for granted: tokens are spread evenly over the experts, and what is
asked of a mask or a loss is answered with yes (no sample is padded, all is finite).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mote_quant.estimate.timeline import BEFORE, Held, Place, Stretch

_CODES_PER_BYTE = 4


class Tracing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor made inside, stretch by stretch; what `model` holds before, gradients too, is not counted.

    With `packs` int8 codes count as four to a byte: so the native quantizers, which no tracing reaches, hold them.
    """

    def __init__(self, model: nn.Module, packs: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stretches: dict[Place, Stretch] = defaultdict(Stretch)
        self.place = BEFORE
        self._packs = packs
        self._sizes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self._held = [tensor.untyped_storage() for tensor in _tensors(model)]
        self._known = {storage._cdata for storage in self._held}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out one operation and enter what it made."""
        out = _KNOWN.get(func, func)(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._enter(made)
        return out

    def accumulated(self, parameter: Tensor) -> None:
        """`parameter.grad` is complete: the memory it lies in is a gradient's from now on."""
        key = None if parameter.grad is None else parameter.grad.untyped_storage()._cdata
        if key in self._sizes and key not in self._gradients:
            size = self._sizes[key]
            self._gradients.add(key)
            self._change(Held(-size, size))

    def ended(self) -> dict[Place, Stretch]:
        """What was found up to now; what is freed later is of no account."""
        found, self.stretches = dict(self.stretches), defaultdict(Stretch)
        return found

    def _enter(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        if self._packs and made.dtype == torch.int8:
            size = -(-size // _CODES_PER_BYTE)
        self._known.add(key)
        self._sizes[key] = size
        weakref.finalize(storage, self._freed, key)
        self._change(Held(size))
        stretch = self.stretches[self.place]
        stretch.tops.append(stretch.end)

    def _freed(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._known.discard(key)
        self._change(Held(0, -size) if key in self._gradients else Held(-size))
        self._gradients.discard(key)

    def _change(self, change: Held) -> None:
        self.stretches[self.place].end += change


def _tensors(model: nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*model.parameters(), *model.buffers(), *gradients]


def _spread(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """As many of each; real numbers, which may be read."""
    share, rest = divmod(input.numel(), max(minlength, 1))
    with unset_fake_temporarily():
        return torch.tensor([share + (index < rest) for index in range(minlength)])


def _granted(input: Tensor) -> float:
    return 1.0 if input.dtype.is_floating_point else 1


_KNOWN: Mapping[Any, Callable[..., Any]] = {
    torch.ops.aten.bincount.default: _spread,
    torch.ops.aten._local_scalar_dense.default: _granted,
}
"""What is answered without numbers."""
