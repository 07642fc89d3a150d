"""The product with nf4 and fp4 weights by bitsandbytes, where that is installed: its bytes are ours."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, SCALE_TABLE, SCALES_PER_SCALE, CodebookFormat

if TYPE_CHECKING:
    from mote_quant.kernels.weight import PackedWeight

_log = logging.getLogger(__name__)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Whether bitsandbytes can take this product. It is imported when that is all that is left to ask."""
    form = cast(CodebookFormat, weight.format)
    # Its CPU kernels misread blocks that straddle rows (0.50.2).
    whole = weight.shape[1] % form.spec.block_size == 0
    return whole and x.dtype in _DTYPES and not x.is_meta and x.numel() > 0 and library() is not None


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out]; for gradients to x the weight is unpacked again, not kept."""
    bnb = cast(Any, library())
    state = _state(bnb.functional.QuantState, weight, x.dtype)
    product: Tensor = bnb.matmul_4bit(x, weight.tensors["weight"].view(-1, 1), bias=bias, quant_state=state)
    return product


def installed() -> bool:
    """Whether bitsandbytes is there, at no cost: it is not imported."""
    return find_spec("bitsandbytes") is not None


@cache
def library() -> ModuleType | None:
    """bitsandbytes, or None where it is not installed or cannot run."""
    try:
        return import_module("bitsandbytes")
    except ModuleNotFoundError:
        return None
    except Exception as error:
        _log.warning("bitsandbytes is installed but cannot be used: %s", error)
        return None


def _state(kind: Any, weight: PackedWeight, dtype: torch.dtype) -> Any:
    tensors, spec = weight.tensors, cast(CodebookFormat, weight.format).spec
    scales = {"absmax": tensors["weight_scale"]}
    if spec.double_quant:
        nested = kind(tensors[SCALE_SCALE], code=tensors[SCALE_TABLE], blocksize=SCALES_PER_SCALE, dtype=torch.float32)
        scales |= {"offset": tensors[SCALE_OFFSET][0], "state2": nested}
    return kind(
        shape=torch.Size(weight.shape), blocksize=spec.block_size, quant_type=spec.format, dtype=dtype, **scales
    )
