"""How far up-cycling alone moved the outputs of a model that is quantized layer by layer as it is up-cycled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.steps.quantize.recording import first, record
from mote_quant.steps.upcycle.preservation import Receipt, probe


class Follower:
    """Takes a few tokens through the layers of `model`, each as it is when `follow` is called, not as it is later.

    `hidden` is what the last layer that was followed put out; None for a model whose layers do not feed one another.
    """

    hidden: Tensor | None

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = [layer for _, layer in decoder_layers(model)]
        passes: list[Tensor] = []
        recording = record(self._layers, lambda batch: passes.append(probe(model)), 1)
        self._before = passes[0]
        # Some layers (those that look at images) are passed over by tokens alone.
        followed = recording.chained and all(recording.calls)
        self._calls = [calls[0] for calls in recording.calls if calls]
        self.hidden = recording.hidden[0] if followed else None

    @torch.no_grad()
    def follow(self, layer: int) -> None:
        """Through layer number `layer`."""
        if self.hidden is not None:
            args, kwargs = self._calls[layer]
            self.hidden = first(self._layers[layer](self.hidden, *args, **kwargs))

    def receipt(self) -> Receipt | None:
        """The model's logits before, and those of what came through all layers."""
        if self.hidden is None:
            return None
        handle = self._layers[-1].register_forward_hook(self._put_in_place)
        try:
            return Receipt.between(self._before, probe(self._model))
        finally:
            handle.remove()

    def _put_in_place(self, module: nn.Module, args: Any, output: Any) -> Any:
        return (self.hidden, *output[1:]) if isinstance(output, tuple) else self.hidden
