"""Products with group integers, and with 2-bit ternary and binary codes whose input is float, by the CPU kernels.

A few tokens are multiplied by the packed bytes as they are. For many, some rows at a time are unpacked to the type of
the input, as the reference unpacks them all, and torch multiplies.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import KernelError
from mote_quant.formats.base import Format, Shape, TensorSpec, check_tensors
from mote_quant.formats.groups import group_width
from mote_quant.formats.integer import BITS, INPUT_SCALE
from mote_quant.formats.registry import format_for
from mote_quant.kernels.cpu import library
from mote_quant.kernels.cpu.calling import TYPES, check, declared
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import BinaryBits, IntegerBits, TernaryBits

FEW_TOKENS = 24
"""Up to so many tokens take the packed bytes as they are."""
FEW_TOKENS_INT8 = 12
"""The same for codes of eight bits, which take the dot products of two of four bits."""
UNPACKED_BYTES = 2**22
"""How much of a weight is unpacked at a time: little beside it, and enough rows for torch to be fast."""

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_WEIGHT = (_POINTER, _INT64, _INT64, _INT32, _INT32, _POINTER, _INT32, _INT64, _INT64, _POINTER, _INT32)
_MATMUL = (_POINTER, _INT32, _INT64, *_WEIGHT, _POINTER, _POINTER, _POINTER, _INT32)
_UNPACK = (*_WEIGHT, _INT64, _INT64, _INT32, _POINTER, _INT32)

Spec = IntegerBits | TernaryBits | BinaryBits


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Whether these kernels can take this product; where x needs gradients they cannot."""
    spec = _spec(weight.format)
    known = not isinstance(spec, TernaryBits) or spec.packing == "2bit"
    here = x.is_cpu and weight.tensors["weight"].is_cpu and x.dtype in TYPES
    learning = x.requires_grad and torch.is_grad_enabled()
    return known and here and not learning and library.library() is not None


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out] in the type of x; KernelError for an x of another width."""
    rows, columns = weight.shape
    if x.shape[-1] != columns:
        raise KernelError(
            f"an input of {x.shape[-1]} columns cannot be multiplied by a weight of shape [{rows}, {columns}]"
        )
    tokens = x.numel() // columns if columns else math.prod(x.shape[:-1])
    multiply = _few if tokens <= few_tokens(weight.format) else _many
    return multiply(x.contiguous(), tokens, weight, None if bias is None else bias.to(x.dtype).contiguous())


def few_tokens(form: Format) -> int:
    """Up to so many tokens the packed bytes are multiplied as they are."""
    return FEW_TOKENS_INT8 if _coding(_spec(form))[0] == 8 else FEW_TOKENS


def dequantize(weight: PackedWeight, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows [begin, end) of the dense weight: the numbers of the format's `decompress`."""
    factors = weight.tensors.get(INPUT_SCALE)
    out = torch.empty(end - begin, weight.shape[1], dtype=torch.float32 if factors is not None else dtype, device="cpu")
    _unpack(weight, begin, out)
    return out if factors is None else out.mul_(factors.float()).to(dtype)


def _unpack(weight: PackedWeight, begin: int, out: Tensor) -> None:
    """Rows from `begin` on into a contiguous `out`, without the input scale."""
    stored = {name: tensor.contiguous() for name, tensor in weight.tensors.items()}
    arguments = _arguments(weight.format, weight.shape, stored)
    _call("mote_int_unpack", *arguments, begin, len(out), TYPES[out.dtype], out.data_ptr(), torch.get_num_threads())


def _few(x: Tensor, tokens: int, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    stored = {name: tensor.contiguous() for name, tensor in weight.tensors.items()}
    arguments = _arguments(weight.format, weight.shape, stored)
    ends = _address(stored.get(INPUT_SCALE)), _address(bias), out.data_ptr(), torch.get_num_threads()
    _call("mote_int_matmul", x.data_ptr(), TYPES[x.dtype], tokens, *arguments, *ends)
    return out


def _many(x: Tensor, tokens: int, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    (rows, columns), factors = weight.shape, weight.tensors.get(INPUT_SCALE)
    flat, out = x.view(tokens, columns), x.new_empty(tokens, rows)
    step = max(16, UNPACKED_BYTES // max(1, columns * x.element_size()))
    dense = torch.empty(min(step, rows), columns, dtype=x.dtype, device="cpu")
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        block = dense[: part.stop - begin]
        if factors is None:
            _unpack(weight, begin, block)
        else:
            block.copy_(dequantize(weight, begin, part.stop, x.dtype))
        out[:, part] = F.linear(flat, block, None if bias is None else bias[part])
    return out.view(*x.shape[:-1], rows)


def _arguments(form: Format, shape: Shape, stored: Mapping[str, Tensor]) -> tuple[int | None, ...]:
    """The weight as the C functions take it: addresses of `stored`, which must live as long as the call."""
    layout, numbers, group = _layout(_spec(form), shape)
    check_tensors(stored, layout)
    scale, zero = stored["weight_scale"], stored.get("weight_zero")
    zero_kind = 0 if zero is None else 2 if zero.is_floating_point() else 1
    stride = scale.shape[-1] if scale.dim() == 2 else 0
    scales = scale.data_ptr(), TYPES[scale.dtype], stride, group
    return stored["weight"].data_ptr(), *numbers, *scales, _address(zero), zero_kind


@lru_cache(maxsize=1024)
def _layout(spec: Spec, shape: Shape) -> tuple[dict[str, TensorSpec], tuple[int, ...], int]:
    """What is stored; rows, columns, bits and offset; columns of a group."""
    bits, offset, group_size = _coding(spec)
    return format_for(spec).layout(shape), (*shape, bits, offset), group_width(group_size, shape[1])


def _coding(spec: Spec) -> tuple[int, int, int]:
    """Bits of a code, the code that stands for 0 (of binary ones, twice a bit), and the group size."""
    if isinstance(spec, IntegerBits):
        bits = BITS[spec.format]
        return bits, 2 ** (bits - 1), spec.group_size
    return 2 if isinstance(spec, TernaryBits) else 1, 1, spec.group_size if spec.granularity == "group" else -1


def _spec(form: Format) -> Spec:
    return cast(Spec, cast(Any, form).spec)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, *arguments: int | None) -> None:
    check(name, getattr(_functions(), name)(*arguments))


@cache
def _functions() -> Any:
    return declared({"mote_int_matmul": _MATMUL, "mote_int_unpack": _UNPACK})
