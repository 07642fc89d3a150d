"""Blocks are read as their forwards have them, with weights or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from eval.families.builders import LANGUAGE, ODD
from mote_quant.anatomy.activation import function_module, function_name
from mote_quant.anatomy.feedforward import find_feedforwards, verify
from mote_quant.errors import UnsupportedModelError


class Free(nn.Module):
    """Two linear layers, for any forward."""

    def __init__(self, hidden: int, inner: int, fused: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, 2 * inner if fused else inner, bias=bias)
        self.last = nn.Linear(inner, hidden, bias=bias)


class GateFirst(Free):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.first(x).chunk(2, dim=-1)
        return self.last(F.silu(gate) * up)


class UpFirst(Free):
    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.first(x).chunk(2, dim=-1)
        return self.last(F.silu(gate) * up)


class Interleaved(Free):
    def forward(self, x: Tensor) -> Tensor:
        both = self.first(x)
        return self.last(F.silu(both[..., ::2]) * both[..., 1::2])


class Plain(Free):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(hidden, inner, fused=False, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return 0.25 * self.last(F.relu(self.first(x)).square())


class Scaled(Free):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(hidden, inner)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.first(x).chunk(2, dim=-1)
        return self.last(self.act(gate * 0.875) * up)


class Adding(Free):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(hidden, inner, fused=False)
        self.act = nn.Tanh()

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.last(self.act(self.first(x))) + before


class Normed(Free):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(hidden, inner)
        self.act, self.between = nn.GELU(), nn.LayerNorm(inner)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.first(x).chunk(2, dim=-1)
        return self.last(self.between(self.act(gate) * up))


class NormedElsewhere(Normed):
    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.first(x).chunk(2, dim=-1)
        return self.last(self.act(self.between(gate)) * up)


class Softly(Free):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.first(x).chunk(2, dim=-1)
        return self.last(gate.softmax(-1) * up)


class Nothing(Free):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__(hidden, inner, fused=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def with_blocks(make: Callable[[int, int], nn.Module], sizes: dict[str, int]) -> PreTrainedModel:
    model = LANGUAGE["Llama"](**sizes)
    for layer in model.model.layers:
        layer.mlp = make(sizes.get("hidden", 32), sizes.get("ffn", 48))
    return model


READ: dict[type[Free], dict[str, Any]] = {
    GateFirst: {"fused": "gate_first", "function": "silu", "gate": "first", "kind": "gated", "bias": False},
    UpFirst: {"fused": "up_first", "function": "silu", "gate": "first", "kind": "gated"},
    Plain: {"function": "relu2", "kind": "plain", "gate": None, "output_scale": 0.25, "bias": True},
    Scaled: {"activation": "act", "fused": "gate_first", "gate_scale": 0.875, "output_scale": 1.0},
    Normed: {"norm": "between", "fused": "up_first", "activation": "act", "gate_scale": 1.0},
    Adding: {"activation": "act", "function": None, "residual": True, "kind": "plain"},
}


@pytest.mark.parametrize("sizes", [{}, ODD, {"ffn": 32}], ids=["even", "odd", "square"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
def test_what_a_forward_does_is_read(kind: type[Free], device: str, sizes: dict[str, int]) -> None:
    with torch.device(device):
        model = with_blocks(kind, sizes)
        found = find_feedforwards(model)
        for block in found:
            verify(model, block)
    assert [block.layer for block in found] == [0, 1]
    for block in found:
        assert {name: getattr(block, name) for name in READ[kind]} == READ[kind]
        assert (block.up, block.down) == ("first", "last")
        assert (block.hidden_size, block.intermediate_size) == (sizes.get("hidden", 32), sizes.get("ffn", 48))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [Interleaved, Softly, Nothing], ids=lambda kind: kind.__name__)
def test_what_is_no_feed_forward_is_not_read_as_one(kind: type[Free], device: str) -> None:
    with torch.device(device):
        model = with_blocks(kind, {})
    with pytest.raises(UnsupportedModelError, match="mlp has the linear pair first and last, but no activation module"):
        find_feedforwards(model)


@pytest.mark.parametrize("rows", [48, 96])
def test_a_gate_in_the_decoder_layer_itself_is_refused(rows: int) -> None:
    model = LANGUAGE["OPT"](layers=1)
    layer = model.model.decoder.layers[0]
    layer.fc1 = nn.Linear(32, rows)
    if rows == 48:
        layer.fc3 = nn.Linear(32, rows)
    with pytest.raises(UnsupportedModelError, match="the layer itself has a gate beside its linear pair"):
        find_feedforwards(model)


class Clipped(nn.Module):
    """Keeps the largest values of its gate only, as the first layers of Gemma 3n."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(hidden, inner), nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.down(self.act(F.relu(gate - gate.std(-1, keepdim=True))) * self.up(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_norm_elsewhere_is_not_verified(device: str) -> None:
    with torch.device(device):
        model = with_blocks(NormedElsewhere, {})
    with pytest.raises(UnsupportedModelError, match=r"does not give between\(act\(gate\(x\)\) \* up\(x\)\) to last"):
        verify(model, find_feedforwards(model)[0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_block_that_does_more_is_found_and_not_verified(device: str) -> None:
    with torch.device(device):
        model = with_blocks(Clipped, {})
    block = find_feedforwards(model)[0]
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.0\.mlp .* does not give act\(gate\(x\)\) \* up\(x\) to down"
    ):
        verify(model, block)


def test_a_meta_block_is_verified_as_it_was_read() -> None:
    with torch.device("meta"):
        model = with_blocks(GateFirst, {})
    block = find_feedforwards(model)[0]
    verify(model, block)
    with pytest.raises(UnsupportedModelError, match="puts its parts together in another way"):
        verify(model, replace(block, fused="up_first"))


def test_weights_tell_a_wrong_half() -> None:
    model = with_blocks(UpFirst, {})
    block = find_feedforwards(model)[0]
    with pytest.raises(UnsupportedModelError, match=r"off by .* from last\(act\(gate\) \* up, the halves of first"):
        verify(model, replace(block, fused="gate_first"))


def test_hooks_and_replaced_forwards_see_nothing_of_it() -> None:
    model = with_blocks(GateFirst, {})
    calls = []
    block = model.model.layers[0].mlp
    block.first.register_forward_hook(lambda *_: calls.append("hook"))
    block.register_forward_pre_hook(lambda *_: calls.append("hook"))
    block.forward = lambda x: calls.append("forward")
    assert find_feedforwards(model)[0].fused == "gate_first"
    assert calls == []
    assert block.first.weight.shape == (96, 32)


def test_gates_of_a_recurrence_are_no_experts() -> None:
    """RecurrentGemma keeps block-diagonal matrices [heads, width, width] in its layers."""
    assert len(find_feedforwards(LANGUAGE["RecurrentGemma"]())) == 2


@pytest.mark.parametrize("function", [F.silu, F.relu, F.gelu, torch.tanh, torch.sigmoid])
def test_functions_have_the_names_of_transformers(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-4, 4, 101)
    name = function_name(x, function(x))
    assert name is not None
    torch.testing.assert_close(function_module(name)(x), function(x))


@pytest.mark.parametrize("function", [torch.sin, torch.abs, lambda x: x, lambda x: F.silu(2 * x)])
def test_functions_that_transformers_does_not_have(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-4, 4, 101)
    assert function_name(x, function(x)) is None
