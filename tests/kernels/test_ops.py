"""The ops as torch sees them: schemas, fake kernels, gradients, compile; and which implementation they take."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from mote_quant.errors import FormatError, KernelError
from mote_quant.formats import Codes, format_for
from mote_quant.kernels import PackedLinear, reference, table
from mote_quant.kernels.experts import ACTIVATIONS, PackedExperts
from mote_quant.kernels.ops import format_of, spec_text, stored_names
from mote_quant.recipe.schema import BinaryBits, CodebookBits, IntegerBits, PackedBits, TernaryBits

SPECS: dict[str, PackedBits] = {
    "ternary_matmul": TernaryBits(format="ternary"),
    "binary_matmul": BinaryBits(format="binary"),
    "int_matmul": IntegerBits(format="int4", group_size=8, symmetric=False),
    "codebook_matmul": CodebookBits(format="nf4"),
}


def stored(spec: PackedBits, rows: int, columns: int, seed: int = 0) -> dict[str, Tensor]:
    """Bytes that are valid for the spec."""
    generator = torch.Generator().manual_seed(seed)
    layout = format_for(spec).layout((rows, columns))
    if isinstance(spec, TernaryBits):
        codes = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
        return format_for(spec).compress(Codes(codes, torch.rand(layout["weight_scale"].shape, generator=generator)))
    return {
        name: torch.randint(0, 256, part.shape, generator=generator).to(torch.uint8)
        if part.dtype == torch.uint8
        else torch.rand(part.shape, generator=generator).to(part.dtype)
        for name, part in layout.items()
    }


def arguments(op: str, rows: int = 6, columns: int = 64, **x: Any) -> tuple[Any, ...]:
    spec = SPECS[op]
    tensors = stored(spec, rows, columns)
    inputs = torch.randn(3, columns, generator=torch.Generator().manual_seed(1), **x)
    return inputs, [tensors[name] for name in stored_names(spec_text(spec))], None, spec_text(spec), rows, columns


def layer(spec: PackedBits, rows: int = 6, columns: int = 64) -> PackedLinear:
    return PackedLinear(spec, (rows, columns), stored(spec, rows, columns), None, torch.float32)


@pytest.mark.parametrize("op", SPECS)
def test_torch_finds_no_fault_with_the_op(op):
    torch.library.opcheck(
        getattr(torch.ops.mote_quant, op), arguments(op), test_utils=["test_schema", "test_faketensor"]
    )


def routed(top_k: int = 2, gated: bool = True, bias: bool = False) -> tuple[Any, ...]:
    spec, inner, hidden, count = SPECS["ternary_matmul"], 12, 8, 3
    shapes = [*[(inner, hidden)] * (2 if gated else 1), (hidden, inner)] * count
    made = [stored(spec, *shape, seed=index) for index, shape in enumerate(shapes)]
    generator = torch.Generator().manual_seed(2)
    biases = [torch.randn(shape[0], generator=generator) for shape in shapes] if bias else []
    x = torch.randn(5, hidden, generator=generator)
    chosen = torch.randint(0, count, (5, top_k), generator=generator)
    gates = torch.rand(5, top_k, generator=generator)
    weights, scales = ([tensors[name] for tensors in made] for name in ("weight", "weight_scale"))
    return x, chosen, gates, weights, scales, biases, spec_text(spec), gated, inner, "silu"


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_experts_op_is_sound_and_is_the_sum_of_its_experts(gated, bias):
    call = routed(gated=gated, bias=bias)
    op = torch.ops.mote_quant.ternary_experts
    torch.library.opcheck(op, call, test_utils=["test_schema", "test_faketensor"])
    x, chosen, gates, weights, scales, biases, text, _, inner, _ = call
    packed = PackedExperts(weights, scales, biases, format_of(text), gated, 8, inner, "silu")

    def expert(index: int, token: Tensor) -> Tensor:
        up = packed.multiply(token, index, 0)
        entering = torch.nn.functional.silu(packed.multiply(token, index, 1)) * up if gated else (
            torch.nn.functional.silu(up))  # fmt: skip
        return packed.multiply(entering, index, packed.projections - 1)

    wanted = torch.stack([
        sum(gate * expert(int(index), token[None])[0] for index, gate in zip(chosen[t], gates[t], strict=True))
        for t, token in enumerate(x)
    ])  # fmt: skip
    torch.testing.assert_close(op(*call), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", SPECS)
def test_a_compiled_layer_calls_the_op_without_a_break_and_gives_the_same(op):
    made = layer(SPECS[op])
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    x = arguments(op)[0]
    with torch.no_grad():
        compiled = torch.compile(made, backend=keep, fullgraph=True)(x)
        assert torch.equal(compiled, made(x))
    assert any(op in str(node.target) for graph in graphs for node in graph.graph.nodes)


@pytest.mark.parametrize("op", SPECS)
def test_gradients_of_the_input_are_those_of_the_dense_product(op):
    made = layer(SPECS[op])
    x, like = (arguments(op)[0].requires_grad_() for _ in range(2))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    (made(x) * weight).sum().backward()
    (reference.matmul(like, made.packed, None) * weight).sum().backward()
    torch.testing.assert_close(x.grad, like.grad)


def test_a_bias_that_learns_gets_its_gradient():
    made = PackedLinear(SPECS["int_matmul"], (6, 64), stored(SPECS["int_matmul"], 6, 64), torch.zeros(6), torch.float32)
    made.bias.requires_grad_()
    made(arguments("int_matmul")[0]).sum().backward()
    assert made.bias.grad.tolist() == [3.0] * 6


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_spec_survives_the_way_through_the_op(spec):
    assert format_of(spec_text(spec)).spec == spec


def test_what_no_kernel_takes_is_computed_by_torch_and_said_once(caplog, monkeypatch):
    monkeypatch.delenv(table.library.CHOICE, raising=False)
    table._warn.cache_clear()
    made = copy.deepcopy(layer(SPECS["int_matmul"]))
    x = arguments("int_matmul", dtype=torch.float64)[0]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(made(x), reference.matmul(x, made.packed, None))
    assert caplog.text.count("int_matmul of IntegerBits(") == 1
    assert "runs as plain torch, which is slow" in caplog.text


def test_names_of_activations_tell_their_functions_apart():
    x = torch.linspace(-4, 4, 101)
    values = [tuple(function(x).tolist()) for function in ACTIVATIONS.values()]
    assert len(set(values)) == len(ACTIVATIONS)


@pytest.mark.parametrize("op", SPECS)
def test_a_default_device_of_another_kind_changes_nothing(op):
    made, x = layer(SPECS[op]), arguments(op)[0]
    with torch.no_grad():
        wanted = made(x)
        with torch.device("meta"):
            assert torch.equal(made(x), wanted)


@pytest.mark.parametrize("op", SPECS)
def test_a_traced_layer_goes_on_computing(op):
    made, x = layer(SPECS[op]), arguments(op)[0]
    with torch.no_grad():
        seen = torch.fx.experimental.proxy_tensor.make_fx(made)(x)
        torch.testing.assert_close(seen(2 * x), made(2 * x))
        assert any(op in str(node.target) for node in seen.graph.nodes)


@pytest.mark.parametrize("op", SPECS)
def test_autocast_leaves_the_type_of_the_input_and_its_gradient(op):
    made, x = layer(SPECS[op]), arguments(op)[0].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32


@pytest.mark.parametrize("op", SPECS)
def test_bad_input_is_told_before_any_kernel_sees_it(op):
    x, weight, _, spec, rows, columns = arguments(op)
    call = getattr(torch.ops.mote_quant, op)
    for bias in (torch.ones(1), torch.ones(rows, dtype=torch.int32)):
        with pytest.raises(KernelError, match="bias"):
            call(x, weight, bias, spec, rows, columns)
    with pytest.raises(KernelError, match="columns"):
        call(x[:, :-1], weight, None, spec, rows, columns)
    with pytest.raises(KernelError, match="meta"):
        call(x, [tensor.to("meta") for tensor in weight], None, spec, rows, columns)


@pytest.mark.parametrize("op", SPECS)
def test_a_buffer_that_was_swapped_under_the_layer_is_noticed(op):
    made, x = layer(SPECS[op]), arguments(op)[0]
    with torch.no_grad():
        made(x)
        made.weight.data = made.weight.data.flip(0).contiguous()
        torch.testing.assert_close(made(x), reference.matmul(x, made.packed, None))
        made.weight.data = made.weight.data[:1].clone()
        with pytest.raises(FormatError):
            made(x)


def test_numbers_whose_sign_is_pending_are_negated():
    made, x = layer(SPECS["int_matmul"]), arguments("int_matmul")[0]
    with torch.no_grad():
        torch.testing.assert_close(made(torch._neg_view(x)), made(-x))
