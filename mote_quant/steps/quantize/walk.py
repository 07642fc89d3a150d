"""Show calibration batches to a model stage by stage: what stands before the decoder, each decoder layer, what follows.

The inputs of a layer are those that the already quantized layers before it produce. Hidden states of one layer are
kept, so a pass over L layers costs 2L layer passes, not L^2 / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers, under

Batch = Mapping[str, Tensor]
_HIDDEN = "hidden_states"


class _StopError(Exception):
    """Ends a forward pass that has gone far enough."""


class Walk:
    """`stages(names)` sorts module names; `run(stage)` shows the batches to a stage; `leave(stage)` moves past it."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._model = model
        self._batches = batches
        self._layers = decoder_layers(model)
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self._hidden: list[Tensor] = []
        self._chained = False

    def stages(self, names: Sequence[str]) -> list[list[str]]:
        """Stage 0 is what runs before the decoder layers, then a stage a layer, then what runs after them."""
        stages: list[list[str]] = [[] for _ in range(len(self._layers) + 2)]
        order = {name: index for index, (name, _) in enumerate(self._model.named_modules())}
        first_layer = order[self._layers[0][0]] if self._layers else len(order)
        for name in names:
            layer = next((i for i, (path, _) in enumerate(self._layers) if under(name, path)), None)
            if layer is not None:
                stages[layer + 1].append(name)
            else:
                stages[0 if order[name] < first_layer else -1].append(name)
        return stages

    def run(self, stage: int) -> None:
        """Show every batch to the modules of `stage`."""
        if self._is_layer(stage) and self._chained:
            self._run_layer(stage - 1)
        else:
            self._run_model(until=self._layers[stage - 1][1] if self._is_layer(stage) else None)

    def leave(self, stage: int) -> None:
        """Everything in `stage` is quantized: what it puts out now is what the next stage will see."""
        if stage == 0 and self._layers:
            self._record()
        elif self._is_layer(stage) and self._chained:
            self._hidden = self._run_layer(stage - 1)

    def _is_layer(self, stage: int) -> bool:
        return 1 <= stage <= len(self._layers)

    def _run_model(self, until: nn.Module | None) -> None:
        handle = None if until is None else until.register_forward_hook(_stop)
        try:
            for batch in self._batches:
                self._forward(batch)
        finally:
            if handle is not None:
                handle.remove()

    def _forward(self, batch: Batch) -> None:
        with suppress(_StopError):
            self._model(**batch, use_cache=False)

    def _run_layer(self, index: int) -> list[Tensor]:
        layer = self._layers[index][1]
        calls = zip(self._hidden, self._calls[index], strict=True)
        return [_first(layer(hidden, *args, **kwargs)) for hidden, (args, kwargs) in calls]

    def _record(self) -> None:
        """One pass that keeps every layer's arguments, and learns whether layers simply feed one another."""
        self._calls = [[] for _ in self._layers]
        self._hidden, self._chained = [], True
        previous: list[Tensor | None] = [None]

        def before(index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                hidden = args[0] if args else kwargs[_HIDDEN]
                if index == 0:
                    self._hidden.append(hidden)
                elif hidden is not previous[0]:
                    self._chained = False
                self._calls[index].append((args[1:], {k: v for k, v in kwargs.items() if k != _HIDDEN}))

            return hook

        def after(module: nn.Module, args: Any, output: Any) -> None:
            previous[0] = _first(output)

        handles = [
            layer.register_forward_pre_hook(before(i), with_kwargs=True) for i, (_, layer) in enumerate(self._layers)
        ]
        handles += [layer.register_forward_hook(after) for _, layer in self._layers]
        try:
            self._run_model(until=None)
        finally:
            for handle in handles:
                handle.remove()


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _StopError
