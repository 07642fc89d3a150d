"""Products with packed ternary weights and int8 activations on the CPU kernels: float in, float out, integers between.

Weights are read as they are stored. Activations are rounded to int8 per token inside, as `ternary.activation` does it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Container, Sequence
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mote_quant.errors import FormatError, KernelError
from mote_quant.formats.base import Format, Shape
from mote_quant.formats.scaled import ScaledFormat
from mote_quant.kernels.cpu.calling import TYPES, check, declared
from mote_quant.kernels.cpu.library import library
from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import TernaryBits

Packing = Literal["2bit", "base3"]

_CODES = (torch.uint8,)
_PACKINGS = {"2bit": (0, 4), "base3": (1, 5)}
"""`Packing` of src/ternary.h, and codes per byte."""
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4, "quick_gelu": 5}
"""`Activation` of src/ternary.h."""
_LONG, _INT, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
_SIGNATURES = {
    "mote_ternary_matmul": (
        *(_POINTER, _INT, _LONG, _LONG),
        *(_POINTER, _INT, _LONG, _POINTER, _INT, _INT, _POINTER, _INT),
        *(_POINTER, _INT),
    ),
    "mote_ternary_experts": (
        *(_POINTER, _INT, *[_LONG] * 5, _POINTER, _POINTER, _INT, _INT),
        *(_POINTER, _INT, _POINTER, _INT, _INT, _POINTER, _INT),
        *(_POINTER, _INT),
    ),
    "mote_ternary_accumulate": (_POINTER, _LONG, _LONG, _POINTER, _INT, _LONG, _POINTER, _INT),
    "mote_ternary_quantize": (_POINTER, _INT, _LONG, _LONG, _POINTER, _POINTER),
}


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Whether `matmul` takes this product."""
    if not (_readable(x) and _known(weight.format) and x.shape[-1] == weight.shape[1]):
        return False
    codes, scale = weight.tensors["weight"], weight.tensors["weight_scale"]
    rows = weight.shape[0]
    return _alike([codes], [_bytes(_packing(weight.format), *weight.shape)], _CODES) and (
        _alike([scale], [1], TYPES) or _alike([scale], [rows], TYPES)
    )


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out] in the type of x, for what `supports` is true of."""
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device="cpu")
    codes, scale = weight.tensors["weight"], weight.tensors["weight_scale"]
    _multiply(x, math.prod(x.shape[:-1]), codes, scale, _packing(weight.format), bias, out)
    return out


def multiply(
    x: Tensor, codes: Tensor, scale: Tensor, packing: Packing, rows: int, bias: Tensor | None = None
) -> Tensor:
    """x [n, in] times packed codes (uint8 [rows, bytes]), one scale or one a row -> [n, rows] in the type of x.

    FormatError for tensors of another type, size or device.
    """
    tokens, columns = x.shape
    _check(x, TYPES, [tokens * columns], "activations")
    _check(codes, _CODES, [_bytes(packing, rows, columns)], f"codes of [{rows}, {columns}]")
    _check(scale, TYPES, [1, rows], f"scales of {rows} rows")
    if bias is not None:
        _check(bias, TYPES, [rows], f"biases of {rows} rows")
    out = torch.empty((tokens, rows), dtype=x.dtype, device="cpu")
    _multiply(x, tokens, codes, scale, packing, bias, out)
    return out


def accumulate(activations: Tensor, codes: Tensor, packing: Packing, rows: int) -> Tensor:
    """The integers under `multiply`: int8 activations [n, in] in -127..127 -> int32 [n, rows], exact."""
    tokens, columns = activations.shape
    if activations.dtype != torch.int8 or (activations.numel() and int(activations.min()) < -127):
        raise FormatError("ternary products take int8 activations in -127..127")
    _check(codes, _CODES, [_bytes(packing, rows, columns)], f"codes of [{rows}, {columns}]")
    activations, codes = activations.contiguous(), codes.contiguous()
    out = torch.empty(tokens, rows, dtype=torch.int32, device="cpu")
    _call(
        "mote_ternary_accumulate",
        *(activations.data_ptr(), tokens, columns),
        *(codes.data_ptr(), _PACKINGS[packing][0], rows),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    return out


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, in] -> int8 codes as `x` and float32 scales [n, 1]; codes 0, scale NaN for one that is not finite."""
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device="cpu")
    scales = torch.empty(len(x), 1, device="cpu")
    _call("mote_ternary_quantize", x.data_ptr(), TYPES[x.dtype], *x.shape, codes.data_ptr(), scales.data_ptr())
    return codes, scales


def supports_experts(x: Tensor, experts: PackedExperts) -> bool:
    """Whether `experts` takes these."""
    if not (_readable(x) and _known(experts.format) and experts.activation in _ACTIVATIONS and experts.weights):
        return False
    packing, shapes = _packing(experts.format), _shapes(experts)
    scales = [1] * len(shapes) if experts.scales[0].numel() == 1 else [rows for rows, _ in shapes]
    return (
        x.dim() == 2
        and x.shape[1] == experts.hidden
        and _alike(experts.weights, [_bytes(packing, *shape) for shape in shapes], _CODES)
        and _alike(experts.scales, scales, TYPES)
        and (not experts.biases or _alike(experts.biases, [rows for rows, _ in shapes], TYPES))
    )


def experts(x: Tensor, chosen: Tensor, gates: Tensor, packed: PackedExperts) -> Tensor:
    """`sum_k gate_k * E_k(x)` for x [T, hidden], integers chosen [T, k] and gates [T, k], in the type of x.

    For what `supports_experts` is true of. A choice of -1 asks no expert, and costs nothing; KernelError for one that
    does not exist.
    """
    if chosen.dim() != 2 or chosen.shape != gates.shape or len(chosen) != len(x):
        found = f"{list(x.shape)}, {list(chosen.shape)}, {list(gates.shape)}"
        raise FormatError(f"experts take x [T, {packed.hidden}], chosen [T, k] and gates [T, k], found {found}")
    x, chosen, gates = _whole(x), _whole(chosen, torch.int64), _whole(gates, torch.float32)
    out = torch.empty_like(x)
    error = _functions().mote_ternary_experts(
        *(x.data_ptr(), TYPES[x.dtype], len(x), packed.hidden, packed.inner, packed.count, chosen.shape[1]),
        *(chosen.data_ptr(), gates.data_ptr(), packed.gated, _ACTIVATIONS[packed.activation]),
        *(_addresses(packed.weights), _PACKINGS[_packing(packed.format)][0]),
        *(_addresses(packed.scales), TYPES[packed.scales[0].dtype], packed.scales[0].numel() == 1),
        *((_addresses(packed.biases), TYPES[packed.biases[0].dtype]) if packed.biases else (None, 0)),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    if error:
        span = f"{int(chosen.min())} to {int(chosen.max())}" if chosen.numel() else "none"
        raise KernelError(f"experts failed with code {error}: {packed.count} experts, chosen {span}; or out of memory")
    return out


def _multiply(
    x: Tensor, tokens: int, codes: Tensor, scale: Tensor, packing: Packing, bias: Tensor | None, out: Tensor
) -> None:
    # Held in variables: what `contiguous` makes must live as long as the call.
    x, codes, scale, bias = _whole(x), _whole(codes), _whole(scale), None if bias is None else _whole(bias)
    _call(
        "mote_ternary_matmul",
        *(x.data_ptr(), TYPES[x.dtype], tokens, x.shape[-1]),
        *(codes.data_ptr(), _PACKINGS[packing][0], out.shape[-1]),
        *(scale.data_ptr(), TYPES[scale.dtype], scale.numel() == 1),
        *((None, 0) if bias is None else (bias.data_ptr(), TYPES[bias.dtype])),
        *(out.data_ptr(), torch.get_num_threads()),
    )


def _whole(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor itself wherever it can be: each torch call costs as much as a small product."""
    if dtype is not None and tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _readable(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in TYPES and library() is not None


def _known(form: object) -> bool:
    """int8 activations; whether scales stand for whole rows is told by their number."""
    spec = form.spec if isinstance(form, ScaledFormat) else None
    return isinstance(spec, TernaryBits) and spec.activations == "int8"


def _packing(form: Format) -> Packing:
    return cast(TernaryBits, cast(ScaledFormat, form).spec).packing


def _bytes(packing: Packing, rows: int, columns: int) -> int:
    return rows * -(-columns // _PACKINGS[packing][1])


def _shapes(experts: PackedExperts) -> list[Shape]:
    up, down = (experts.inner, experts.hidden), (experts.hidden, experts.inner)
    return [*[up] * (experts.projections - 1), down] * experts.count


def _alike(tensors: Sequence[Tensor], sizes: Sequence[int], types: Container[torch.dtype]) -> bool:
    """Whether these are whole tensors of one of the types, so many elements in each."""
    dtype = tensors[0].dtype
    if dtype not in types or len(tensors) != len(sizes):
        return False
    for tensor, size in zip(tensors, sizes, strict=True):
        if not (tensor.dtype is dtype and tensor.numel() == size and tensor.is_cpu and tensor.is_contiguous()):
            return False
    return True


def _check(tensor: Tensor, types: Container[torch.dtype], sizes: Container[int], what: str) -> None:
    if not (tensor.is_cpu and tensor.dtype in types and tensor.numel() in sizes):
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise FormatError(f"{what} that CPU kernels cannot take: {found}")


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """A C array of pointers."""
    return (_POINTER * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _call(name: str, *arguments: Any) -> None:
    check(name, getattr(_functions(), name)(*arguments))


@cache
def _functions() -> Any:
    return declared(_SIGNATURES)
