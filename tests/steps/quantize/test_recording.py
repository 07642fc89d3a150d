from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.steps.quantize import recording
from mote_quant.steps.quantize.recording import record
from tests import pico


def recorded(model, batches, quick: bool):
    layers = [layer for _, layer in decoder_layers(model)]
    runs = [0] * len(layers)
    counters = [
        layer.mlp.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
        if hasattr(layer, "mlp")
        else layer.fc2.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
        for index, layer in enumerate(layers)
    ]

    def forward(number: int) -> None:
        model(**{k: v for k, v in batches[number].items() if k != "labels"}, use_cache=False)

    with torch.no_grad(), mock.patch.object(recording, "_same", recording._same if quick else lambda *_: False):
        found = record(layers, forward, len(batches))
    for counter in counters:
        counter.remove()
    return found, runs


def flat(value) -> list:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "llava", "qwen2_5_vl"])
def test_the_quick_pass_takes_down_what_full_passes_do(family):
    model = pico.PICO[family]()
    batches = [pico.inputs(model, batch=2, length=length, seed=length) for length in (9, 6, 7)]
    found, runs = recorded(model, batches, quick=True)
    expected, full_runs = recorded(model, batches, quick=False)
    assert runs == [1, 1]  # only the first batch went through the layers
    assert full_runs == [3, 3]
    assert found.chained
    assert all(torch.equal(a, b) for a, b in zip(found.hidden, expected.hidden, strict=True))
    for ours, theirs in zip(flat(found.calls), flat(expected.calls), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours is theirs or ours == theirs
    assert all("forward" not in vars(layer) for _, layer in decoder_layers(model))


def test_arguments_that_depend_on_earlier_layers_are_taken_from_full_passes():
    model = pico.PICO["llama"](layers=2)
    first, second = (layer for _, layer in decoder_layers(model))
    memory: dict[str, Tensor] = {}
    first.register_forward_hook(lambda module, args, output: memory.update(hidden=output * 2))

    def give(module, args, kwargs):
        return args, kwargs | {"extra": memory["hidden"]}

    second.register_forward_pre_hook(give, with_kwargs=True)
    batches = [pico.inputs(model, seed=seed) for seed in range(2)]
    found, runs = recorded(model, batches, quick=True)
    assert runs == [2, 2]
    assert found.calls[1][1][1]["extra"].shape == found.hidden[1].shape


def test_no_batches():
    layers = [layer for _, layer in decoder_layers(pico.PICO["llama"]())]
    assert len(record(layers, lambda number: None, 0).hidden) == 0
