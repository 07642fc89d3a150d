"""What a model gives its decoder layers beside the hidden states, so that each layer can be run again by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.steps.quantize.spill import Spill

_HIDDEN = "hidden_states"

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments, the hidden states left out."""


@dataclass
class Recording:
    """`hidden`: per batch what goes into the first layer. `calls`: per layer and batch the other arguments.

    `chained` says that every layer simply feeds the next.
    """

    hidden: Spill
    calls: list[list[Call]]
    chained: bool = True


def record(layers: Sequence[nn.Module], forward: Callable[[int], None], batches: int) -> Recording:
    """Run all batches (`forward` runs one by its number) and take down the arguments of every layer.

    The first batch runs in full. If the arguments do not depend on what layers compute, the others run with layers
    that hand on their input, which costs next to nothing.
    """
    found = Recording(Spill(), [[] for _ in layers])
    if not batches:
        return found
    kinds = _take(found, layers, forward, 0)
    trial = Recording(Spill(), [[] for _ in layers])
    with _passing_on(layers, kinds):
        _take(trial, layers, forward, 0)
        quick = found.chained and all(map(_same, found.calls, trial.calls))
        for batch in range(1, batches) if quick else ():
            _take(found, layers, forward, batch)
    for batch in () if quick else range(1, batches):
        _take(found, layers, forward, batch)
    return found


def first(output: Any) -> Tensor:
    """The hidden states in what a layer returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _take(found: Recording, layers: Sequence[nn.Module], forward: Callable[[int], None], batch: int) -> list[int]:
    """Run a batch; returns per layer how many values it puts out, 0 for a bare tensor."""
    previous: list[Tensor | None] = [None]
    kinds = [0] * len(layers)

    def before(index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs[_HIDDEN]
            if index == 0:
                found.hidden.append(hidden)
            elif hidden is not previous[0]:
                found.chained = False
            found.calls[index].append((args[1:], {k: v for k, v in kwargs.items() if k != _HIDDEN}))

        return hook

    def after(index: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            previous[0] = first(output)
            kinds[index] = len(output) if isinstance(output, tuple) else 0

        return hook

    handles = [layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, layer in enumerate(layers)]
    handles += [layer.register_forward_hook(after(i)) for i, layer in enumerate(layers)]
    try:
        forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return kinds


@contextmanager
def _passing_on(layers: Sequence[nn.Module], kinds: Sequence[int]) -> Iterator[None]:
    """While open, layers return the hidden states they are given."""
    for layer, count in zip(layers, kinds, strict=True):
        layer.forward = _hand_on(count)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _hand_on(count: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs[_HIDDEN]
        return (hidden, *[None] * (count - 1)) if count else hidden

    return forward


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) and isinstance(theirs, Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours is theirs or bool(ours == theirs)
