"""The kernels behind the ops that layers call."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mote_quant.formats import Codes
from mote_quant.kernels import PackedLinear, reference, table
from mote_quant.recipe import TernaryBits
from tests.kernels.triton_kernels.weights import experts_on, generator, packed_experts

SPEC = TernaryBits(format="ternary")


@pytest.fixture
def calls(monkeypatch):
    """How often our kernels were taken, by the name of their function."""
    made = []

    def counted(choice):
        return dataclasses.replace(choice, run=lambda *given: (made.append(choice.run.__name__), choice.run(*given))[1])

    for op in ("ternary_matmul", "ternary_experts"):
        first, *others = table.OPS[op]
        assert first.name == "triton"
        monkeypatch.setitem(table.OPS, op, (counted(first), *others))
    return made


def test_a_packed_layer_runs_on_them_with_gradients(calls, device):
    codes = torch.randint(-1, 2, (12, 20), generator=generator(0)).to(torch.int8)
    layer = PackedLinear.pack(SPEC, Codes(codes, torch.tensor([0.5])), torch.randn(12), torch.float32)
    x = torch.randn(2, 3, 20, generator=generator(1), requires_grad=True)
    expected = reference.matmul(x.detach(), layer.packed, layer.bias)
    layer = layer.to(device)
    got = layer(x.to(device))
    assert calls == ["matmul"]
    torch.testing.assert_close(got.detach().cpu(), expected.detach(), rtol=1e-5, atol=1e-5)
    got.sum().backward()
    torch.testing.assert_close(x.grad, (codes.float().sum(0) * 0.5).expand_as(x))


def test_experts_run_on_them(calls, device):
    packed = experts_on(device, packed_experts(SPEC, 3, 20, 12, gated=True, biased=False, activation="silu"))
    x = torch.randn(2, 20, generator=generator(1)).to(device)
    table.experts(x, torch.tensor([[0], [2]], device=device), torch.ones(2, 1, device=device), packed)
    assert calls == ["experts"]
