"""The native quantizers: the bits of the torch reference, in one pass over what they read.

All take contiguous float32 or bfloat16 CPU tensors for which `supports` is true. A weight [rows, columns] has scales
(float32) for every `group` columns of a row, [rows, groups], or one for all of it, [1].
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mote_quant.errors import KernelError
from mote_quant.kernels.cpu.calling import TYPES, check, declared
from mote_quant.kernels.cpu.library import library
from mote_quant.kernels.watching import traced

_FLOATS = (torch.float32, torch.bfloat16)
_READ = (*_FLOATS, torch.uint8)
_CODES_INT8, _CODES_2BIT = 16, 17
_LONG, _INT, _POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
_SIGNATURES = {
    "mote_absolute_sums": [_POINTER, _INT, _LONG, _LONG, _LONG, _POINTER, _INT],
    "mote_ternarize": [_POINTER, _INT, _LONG, _LONG, _POINTER, _LONG, _LONG, _INT, _POINTER, _INT, _INT],
    "mote_expand_2bit": [_POINTER, _LONG, _LONG, _POINTER, _LONG, _LONG, _POINTER, _INT, _INT],
    "mote_quantize_activations": [_POINTER, _INT, _LONG, _LONG, _INT, _POINTER, _INT, _POINTER, _INT],
}


def supports(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether there are kernels for this tensor, and for results in `dtype` (None: in the tensor's own).

    Not while torch.compile traces, which fuses the reference itself, nor while anybody else does.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    known = x.dtype in _FLOATS if dtype is None else dtype in _FLOATS and x.dtype in _READ
    plain = x.is_contiguous() and x.numel() > 0 and not x.is_neg() and not traced()
    return known and plain and library() is not None


def absolute_sums(x: Tensor, group: int) -> Tensor:
    """The sums of |x| [rows, columns] over every `group` columns, float64 [rows, groups]: equal for any threads."""
    rows, columns = x.shape
    group = min(group, columns)
    sums = torch.empty(rows, -(-columns // group), dtype=torch.float64, device="cpu")
    _call("mote_absolute_sums", x.data_ptr(), TYPES[x.dtype], rows, columns, group, sums.data_ptr())
    return sums


def values(weight: Tensor, scale: Tensor, group: int, binary: bool, dtype: torch.dtype) -> Tensor:
    """Each code times its scale, in `dtype`."""
    return _ternarize(weight, scale, group, binary, torch.empty(weight.shape, dtype=dtype, device="cpu"), TYPES[dtype])


def codes(weight: Tensor, scale: Tensor, group: int, binary: bool) -> Tensor:
    """int8 codes in {-1, 0, 1} or {-1, 1}."""
    return _ternarize(
        weight, scale, group, binary, torch.empty(weight.shape, dtype=torch.int8, device="cpu"), _CODES_INT8
    )


def packed_codes(weight: Tensor, scale: Tensor, group: int, binary: bool) -> Tensor:
    """The codes as `pack_2bit` packs them: uint8 [rows, ceil(columns / 4)]."""
    rows, columns = weight.shape
    packed = torch.empty(rows, -(-columns // 4), dtype=torch.uint8, device="cpu")
    return _ternarize(weight, scale, group, binary, packed, _CODES_2BIT)


def packed_values(packed: Tensor, columns: int, scale: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """Packed codes times their scales: [rows, columns] in `dtype`."""
    rows, scale, group = packed.shape[0], scale.float().contiguous(), min(group, columns)
    out = torch.empty(rows, columns, dtype=dtype, device="cpu")
    row_scales = _row_scales(scale, rows, columns, group)
    _call(
        "mote_expand_2bit",
        *(packed.data_ptr(), rows, columns, scale.data_ptr(), row_scales, group),
        *(out.data_ptr(), TYPES[dtype]),
    )
    return out


def quantized_activations(x: Tensor, dtype: torch.dtype, whole: bool = False) -> tuple[Tensor, Tensor]:
    """`x` [..., features] by `ternary.activation`, in `dtype`: values, or `whole` numbers; scales float32 [..., 1]."""
    out = torch.empty(x.shape, dtype=dtype, device="cpu")
    scales = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device="cpu")
    _call(
        "mote_quantize_activations",
        *(x.data_ptr(), TYPES[x.dtype], scales.numel(), x.shape[-1], int(whole)),
        *(out.data_ptr(), TYPES[dtype], scales.data_ptr()),
    )
    return out, scales


def _ternarize(weight: Tensor, scale: Tensor, group: int, binary: bool, out: Tensor, kind: int) -> Tensor:
    rows, columns = weight.shape
    scale, group = scale.float().contiguous(), min(group, columns)
    _call(
        "mote_ternarize",
        *(weight.data_ptr(), TYPES[weight.dtype], rows, columns),
        *(scale.data_ptr(), _row_scales(scale, rows, columns, group), group, int(binary)),
        *(out.data_ptr(), kind),
    )
    return out


def _row_scales(scale: Tensor, rows: int, columns: int, group: int) -> int:
    """How many scales a row has of its own; KernelError where there are too few for the weight."""
    groups = -(-columns // group)
    if scale.numel() not in (1, rows * groups):
        raise KernelError(f"{scale.numel()} scales for {rows} rows of {groups} groups")
    return 0 if scale.numel() == 1 else groups


def _call(name: str, *arguments: int) -> None:
    check(name, getattr(_functions(), name)(*arguments, torch.get_num_threads()))


@cache
def _functions() -> Any:
    return declared(_SIGNATURES)
