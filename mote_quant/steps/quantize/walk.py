"""Show calibration batches to a model stage by stage: what stands before the decoder, each decoder layer, what follows.

The inputs of a layer are those that the already quantized layers before it produce. Hidden states of one layer are
kept (on disk, when they are many), so a pass over L layers costs 2L layer passes, not L^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers, under
from mote_quant.steps.quantize.recording import Recording, first, record

Batch = Mapping[str, Tensor]


class _StopError(Exception):
    """Ends a forward pass that has gone far enough."""


def stage_of(model: nn.Module) -> Callable[[str], int]:
    """The stage of a module: 0 runs before the decoder layers, then each layer is one, the last is what runs after."""
    paths = {path: number for number, (path, _) in enumerate(decoder_layers(model), start=1)}
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    first_layer = min((order[path] for path in paths), default=len(order))

    def stage(name: str) -> int:
        layer = next((number for path, number in paths.items() if under(name, path)), None)
        if layer is not None:
            return layer
        return 0 if order[name] < first_layer else len(paths) + 1

    return stage


class Walk:
    """`stages(names)` sorts module names; `run(stage)` shows the batches to a stage; `leave(stage)` moves past it.

    `begin` is told the number of each batch before it runs.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], begin: Callable[[int], None] = lambda batch: None
    ) -> None:
        self._model = model
        self._batches = batches
        self._begin = begin
        self._layers = decoder_layers(model)
        self._recording: Recording | None = None

    def stages(self, names: Sequence[str]) -> list[list[str]]:
        """The names sorted by `stage_of`."""
        stages: list[list[str]] = [[] for _ in range(len(self._layers) + 2)]
        stage = stage_of(self._model)
        for name in names:
            stages[stage(name)].append(name)
        return stages

    def run(self, stage: int) -> None:
        """Show every batch to the modules of `stage`."""
        if self._is_layer(stage) and self._recording is not None and self._recording.chained:
            self._run_layer(self._recording, stage - 1)
        else:
            until = self._last_of(stage)
            for number in range(len(self._batches)):
                self._forward(number, until)

    def leave(self, stage: int) -> None:
        """Everything in `stage` is quantized: what it puts out now is what the next stage will see."""
        if stage == 0 and self._layers:
            modules = [layer for _, layer in self._layers]
            self._recording = record(modules, lambda number: self._forward(number, modules[-1]), len(self._batches))
        elif 1 <= stage < len(self._layers) and self._recording is not None and self._recording.chained:
            self._run_layer(self._recording, stage - 1, keep=True)

    def _last_of(self, stage: int) -> nn.Module | None:
        """The module after which a pass for `stage` may end: the logits of a large vocabulary are large."""
        if self._is_layer(stage):
            return self._layers[stage - 1][1]
        return self._layers[0][1] if stage == 0 and self._layers else None

    def _is_layer(self, stage: int) -> bool:
        return 1 <= stage <= len(self._layers)

    def _forward(self, number: int, until: nn.Module | None) -> None:
        handle = None if until is None else until.register_forward_hook(_stop)
        self._begin(number)
        try:
            with suppress(_StopError):
                self._model(**self._batches[number], use_cache=False)
        finally:
            if handle is not None:
                handle.remove()

    def _run_layer(self, recording: Recording, index: int, keep: bool = False) -> None:
        layer = self._layers[index][1]
        for number, (args, kwargs) in enumerate(recording.calls[index]):
            self._begin(number)
            output = first(layer(recording.hidden[number], *args, **kwargs))
            if keep:
                recording.hidden.replace(number, output)


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _StopError
