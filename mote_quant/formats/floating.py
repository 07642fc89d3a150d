"""Floating-point names of a recipe and the torch types they stand for."""

from __future__ import annotations

import torch

from mote_quant.errors import FormatError

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a recipe's float name; FormatError for any other name."""
    try:
        return DTYPES[name]
    except KeyError:
        raise FormatError(f"{name!r} is no floating-point format; choose one of {', '.join(DTYPES)}") from None


def bits_of(dtype: torch.dtype) -> int:
    """Bits one element takes."""
    return dtype.itemsize * 8
