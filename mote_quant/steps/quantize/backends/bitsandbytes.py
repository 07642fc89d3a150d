"""Codes found by bitsandbytes: nf4 and fp4, and int8 by whole rows. Needs no data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, dtype_of
from mote_quant.hf.bnb import read
from mote_quant.recipe.schema import CodebookBits, IntegerBits
from mote_quant.steps.quantize.backends.extras import load
from mote_quant.steps.quantize.methods.base import Seen, finite_weight


def quantize_codebook(weight: Tensor, spec: CodebookBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """nf4 or fp4 codes of a weight [out, in]; what calibration saw is not used. BadWeightsError, MissingExtraError."""
    packed, state = _functional().quantize_4bit(
        finite_weight(weight, name),
        blocksize=spec.block_size,
        compress_statistics=spec.double_quant,
        quant_type=spec.format,
    )
    tensors = {f"weight.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
    return read({"weight": packed, **tensors}, name)[1]


def quantize_int8(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """int8 codes of a weight [out, in] by rows: largest magnitude / 127 is the scale, in the type the spec stores."""
    # As bitsandbytes' own layer does it, which knows no other type.
    half = finite_weight(weight, name).half()
    if not bool(half.isfinite().all()):
        raise FormatError(
            f"{name}: bitsandbytes quantizes to int8 from float16, which its weights do not fit; take backend: own"
        )
    values, largest, _ = _functional().int8_vectorwise_quant(half)
    codes = read({"weight": values, "SCB": largest}, name)[1]
    return Codes(codes.codes, codes.scale.to(dtype_of(spec.scale_dtype)))


def _functional() -> Any:
    return load("bitsandbytes", "bitsandbytes.functional")
