"""The hidden states after each decoder layer, as a forward makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.data.source import IGNORED


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward of `model` fills the list with the state after each decoder layer, [batch, length, width]."""
    states: list[Tensor] = []
    layers = [layer for _, layer in decoder_layers(model)]

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        if module is layers[0]:
            states.clear()
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def attended(inputs: Mapping[str, Tensor]) -> Tensor:
    """Which positions of a batch [batch, length] are no padding."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != inputs["input_ids"].shape:
        return torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    return mask.bool()


def labelled(inputs: Mapping[str, Tensor]) -> Tensor:
    """Which positions [batch, length - 1] have a label to predict: position i predicts token i + 1."""
    return inputs["labels"][:, 1:] != IGNORED


def at_labels(states: list[Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Of each state the positions that have a label to predict, [positions, width]."""
    mask = labelled(inputs)
    return tuple(state[:, :-1][mask.to(state.device)] for state in states)
