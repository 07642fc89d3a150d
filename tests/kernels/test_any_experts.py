"""Packed experts of any formats as one op: torch finds no fault with it, and it is what the experts are one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mote_quant.kernels import PackedLinear, any_experts
from mote_quant.kernels.ops import spec_text
from mote_quant.recipe.schema import CodebookBits, IntegerBits, TernaryBits
from tests.rounding import assert_same_to_rounding

HIDDEN, INNER, EXPERTS = 16, 24, 3
SPECS = {
    "all alike": [IntegerBits(format="int4", group_size=8)],
    "zeros, blocks and codes": [
        IntegerBits(format="int3", group_size=8, symmetric=False),
        CodebookBits(format="nf4"),
        TernaryBits(format="ternary", granularity="group", group_size=8),
    ],
}


def layers(specs, gated: bool, bias: bool) -> list[list[PackedLinear]]:
    """Experts of (up, gate, down) or (up, down), each weight of another of `specs`, of bytes that any of them takes."""
    generator = torch.Generator().manual_seed(0)

    def layer(spec, rows: int, columns: int) -> PackedLinear:
        made = PackedLinear.empty(spec, columns, rows, bias, torch.float32)
        for name, tensor in made.named_buffers():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(values * 80 if tensor.dtype == torch.uint8 else values / 4)
            if name == "weight" and isinstance(spec, TernaryBits):
                tensor.fill_(0b01_00_10_01)
        if bias:
            made.bias.data = torch.rand(rows, generator=generator)
        return made

    shapes = [(INNER, HIDDEN)] * (2 if gated else 1) + [(HIDDEN, INNER)]
    chosen = [specs[index % len(specs)] for index in range(EXPERTS * len(shapes))]
    rest = iter(chosen)
    return [[layer(next(rest), *shape) for shape in shapes] for _ in range(EXPERTS)]


def arguments(experts: list[list[PackedLinear]], dtype=torch.float32, tokens: int = 5, top_k: int = 2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=generator)[:top_k] for _ in range(tokens)])
    every = [layer for expert in experts for layer in expert]
    stored = [tensor for layer in every for tensor in layer.buffers()]
    biases = [layer.bias for layer in every if layer.bias is not None]
    specs = [spec_text(layer.spec) for layer in every]
    gates = torch.rand(tokens, top_k, generator=generator)
    return x, chosen, gates, stored, biases, specs, len(experts[0]) == 3, INNER, "silu"


def one_by_one(experts, x, chosen, gates):
    outputs = x.new_zeros(len(x), HIDDEN, dtype=torch.float32)
    for token, (row, weights) in enumerate(zip(chosen.tolist(), gates.tolist(), strict=True)):
        for expert, weight in zip(row, weights, strict=True):
            up, *gate, down = experts[expert]
            entering = F.silu(gate[0](x[token])) * up(x[token]) if gate else F.silu(up(x[token]))
            outputs[token] += weight * down(entering).float()
    return outputs.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gated", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("name", SPECS)
def test_it_is_what_the_experts_are_one_by_one(name, gated, bias, dtype):
    experts = layers(SPECS[name], gated, bias)
    given = arguments(experts, dtype)
    with torch.no_grad():
        assert_same_to_rounding(any_experts.packed_experts(*given), one_by_one(experts, *given[:3]))


def test_torch_finds_no_fault_with_it():
    given = arguments(layers(SPECS["zeros, blocks and codes"], gated=True, bias=False))
    torch.library.opcheck(torch.ops.mote_quant.packed_experts, given, test_utils=["test_schema", "test_faketensor"])


def test_no_tokens_are_no_work():
    given = arguments(layers(SPECS["all alike"], gated=True, bias=False), tokens=1)
    none = [part[:0] for part in given[:3]]
    assert any_experts.packed_experts(*none, *given[3:]).shape == (0, HIDDEN)
