"""The operations on packed weights as torch ops (`torch.ops.mote_quant`), so that compile, export and FSDP see them.

Which implementation an op takes is looked up in `table` on every call; shapes and types are known without running it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.errors import KernelError
from mote_quant.formats.base import Format, Shape
from mote_quant.formats.registry import format_for
from mote_quant.kernels import table
from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.watching import traced
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.bits import BinaryBits, CodebookBits, IntegerBits, PackedBits, TernaryBits, read_bits
from mote_quant.recipe.plain import settings

_MATMUL = "(Tensor x, Tensor[] weight, Tensor? bias, str spec, int rows, int columns) -> Tensor"
_EXPERTS = (
    "(Tensor x, Tensor chosen, Tensor gates, Tensor[] weights, Tensor[] scales, Tensor[] biases, str spec, bool gated, "
    "int inner, str activation) -> Tensor"
)
OPS_OF: Mapping[type, str] = {
    TernaryBits: "ternary_matmul",
    BinaryBits: "binary_matmul",
    IntegerBits: "int_matmul",
    CodebookBits: "codebook_matmul",
}
"""The op that multiplies by a weight of each kind of spec."""
_library: Any = torch.library.Library("mote_quant", "DEF")  # type: ignore[no-untyped-call]


def spec_text(spec: PackedBits) -> str:
    """A spec as ops are given it."""
    return json.dumps(settings(spec))


@cache
def format_of(text: str) -> Format:
    """The format that `spec_text` wrote."""
    return format_for(cast(PackedBits, read_bits(json.loads(text))))


@cache
def op_of(text: str) -> str:
    """The op that multiplies by a weight of this spec."""
    return OPS_OF[type(read_bits(json.loads(text)))]


@cache
def stored_names(text: str) -> tuple[str, ...]:
    """The names of its stored tensors, in the order in which ops take them."""
    return tuple(format_of(text).layout((1, 1)))


def matmul(op: str, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, spec: str, shape: Shape) -> Tensor:
    """x [..., in] @ weight [out, in]^T + bias by the op of this name, with gradients to x and the bias.

    `weight` holds the stored tensors in the order of the format's layout.
    """
    call = getattr(torch.ops.mote_quant, op)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return cast(Tensor, _Differentiable.apply(x, bias, call, spec, shape, *weight))  # type: ignore[no-untyped-call]
    return cast(Tensor, call(x, weight, bias, spec, *shape))


def unwatched(x: Tensor) -> bool:
    """Whether only numbers are wanted: no gradients, and no compiler, tracer, profiler or subclass to see the op.

    Then the op table may be asked directly: at one token the way through the dispatcher costs as much as a product.
    """
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._autograd._profiler_enabled()
        and not traced()
    )


class _Differentiable(torch.autograd.Function):
    """Nothing dense is kept for backward: the weight is unpacked again. Rounding of x is passed straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Any, call: Any, spec: str, shape: Shape, *weight: Tensor) -> Tensor:
        ctx.save_for_backward(*weight)
        ctx.settings = spec, shape, x.dtype
        return cast(Tensor, call(x, list(weight), bias, spec, *shape))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        spec, shape, dtype = ctx.settings
        weight = ctx.saved_tensors  # once: under activation checkpointing that is when they are computed again
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            packed = packed_weight(spec, weight, shape)
            with torch.autocast(gradient.device.type, enabled=False):
                to_x = gradient.to(dtype) @ packed.format.decompress(packed.tensors, shape, dtype)
        if ctx.needs_input_grad[1]:
            to_bias = gradient.flatten(0, -2).sum(0)
        return (to_x, to_bias, None, None, None, *[None] * len(weight))


def packed_weight(spec: str, weight: Sequence[Tensor], shape: Shape) -> PackedWeight:
    """The stored tensors of a weight, in the order of its layout, as kernels take them."""
    return PackedWeight(dict(zip(stored_names(spec), weight, strict=True)), shape, format_of(spec))


def _run_matmul(
    op: str, x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, spec: str, rows: int, columns: int
) -> Tensor:
    return table.matmul(op, x, packed_weight(spec, weight, (rows, columns)), bias)


def _fake_matmul(
    x: Tensor, weight: Sequence[Tensor], bias: Tensor | None, spec: str, rows: int, columns: int
) -> Tensor:
    _refuse_numbers(x)
    return x.new_empty(*x.shape[:-1], rows)


def _run_experts(
    x: Tensor,
    chosen: Tensor,
    gates: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
    gated: bool,
    inner: int,
    activation: str,
) -> Tensor:
    experts = PackedExperts(weights, scales, biases, format_of(spec), gated, len(weights[-1]), inner, activation)
    return table.experts(x, chosen, gates, experts)


def fake_experts(x: Tensor, *others: Any) -> Tensor:
    """The shape of what experts make of x: that of x."""
    _refuse_numbers(x)
    return x.new_empty(x.shape)


def _refuse_numbers(x: Tensor) -> None:
    """The shapes alone are asked for also where weights are on the meta device and the input is not."""
    if type(x) is Tensor and not x.is_meta:
        raise KernelError(f"x is on {x.device}, the packed weight on meta: load or move it first")


def _register(name: str) -> None:
    if name == "ternary_experts":
        schema, run, fake = _EXPERTS, _run_experts, fake_experts
    else:
        schema, run, fake = _MATMUL, partial(_run_matmul, name), _fake_matmul
    define(name, schema, run, fake)


def define(name: str, schema: str, run: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Enter `torch.ops.mote_quant.<name>`; `fake` knows the shape of its result without running it."""
    _library.define(f"{name}{schema}")
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mote_quant::{name}", fake, lib=_library)


for _name in table.OPS:
    _register(_name)
