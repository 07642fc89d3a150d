"""What other weights do to the output of the block they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from mote_quant.steps.quantize.allocate.units import Unit

Weights = Mapping[str, Tensor]
"""Module name -> a weight to put in the place of its own."""
Key = tuple[Unit, str]
"""Whose modules, and the format they try."""


@contextmanager
def swapped(model: nn.Module, weights: Weights) -> Iterator[None]:
    """While open, the named linear layers hold other weights."""
    held = {name: cast(nn.Parameter, model.get_submodule(name).weight) for name in weights}
    own = {name: parameter.data for name, parameter in held.items()}
    try:
        for name, weight in weights.items():
            held[name].data = weight
        yield
    finally:
        for name, parameter in held.items():
            parameter.data = own[name]


class Called:
    """While watching, `blocks` takes down which of the named modules are called and return hidden states.

    A list of modules is never called, and some parents hold linear layers for others to use: those cannot be tried.
    """

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        self._model = model
        self._names = names
        self.blocks: set[str] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every call counts."""
        handles = [self._model.get_submodule(name).register_forward_hook(self._hook(name)) for name in self._names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if hidden_in(output) is not None:
                self.blocks.add(name)

        return hook


class Trials:
    """While watching, each block that is called runs once more with the weights of each of its trials.

    `errors` sums, over all tokens, the squared change of the output times the square of what `weigh` says of the token:
    `weigh(block, rows)` gives factors of the shape `rows` (of the output without its last axis), or None for ones.
    Nothing is tried while `paused`.
    """

    def __init__(
        self,
        model: nn.Module,
        trials: Mapping[str, Mapping[Key, Weights]],
        weigh: Callable[[str, tuple[int, ...]], Tensor | None],
    ) -> None:
        self._model = model
        self._trials = trials
        self._weigh = weigh
        self._running = False
        self.paused = False
        self.errors: dict[tuple[str, Key], float] = {(block, key): 0.0 for block in trials for key in trials[block]}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Blocks are named by their paths."""
        handles = [
            self._model.get_submodule(path).register_forward_hook(self._hook(path), with_kwargs=True)
            for path in self._trials
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # A block may lie in another one that is being tried.
            if not (self._running or self.paused):
                self._running = True
                try:
                    self._try(path, lambda: module.forward(*args, **kwargs), cast(Tensor, hidden_in(output)).float())
                finally:
                    self._running = False

        return hook

    def _try(self, path: str, again: Callable[[], Any], expected: Tensor) -> None:
        factors = self._weigh(path, tuple(expected.shape[:-1]))
        for key, weights in self._trials[path].items():
            with swapped(self._model, weights):
                change = cast(Tensor, hidden_in(again())).float() - expected
            squares = change.square().sum(-1)
            self.errors[path, key] += float(
                (squares if factors is None else squares * factors.to(squares.device).square()).sum()
            )


def hidden_in(output: Any) -> Tensor | None:
    """The hidden states in what a block returns: itself or its first value; None when it is something else."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() and first.dim() > 1 else None
