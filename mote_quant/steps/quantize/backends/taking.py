"""What our Hessian and a library's rounded weight have to become to be given to the other side."""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError, FormatError
from mote_quant.formats import Codes, dtype_of
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.base import Seen


def hessian_of(seen: Seen | None, name: str) -> tuple[Tensor, int]:
    """The Hessian, float32 [in, in], in a copy that a library may write over, and its tokens; or CalibrationError."""
    if seen is None or seen.hessian is None:
        raise CalibrationError(f"{name}: gptq needs the Hessian of its inputs; give calibration data, or use rtn")
    if not bool(seen.hessian.isfinite().all()):
        raise CalibrationError(f"{name}: the Hessian holds NaN or infinite values; calibration inputs are too large")
    return seen.hessian.detach().float().clone(), seen.tokens


def take(rounded: Tensor, scale: Tensor, zero: Tensor, spec: IntegerBits, name: str) -> Codes:
    """The codes of a float32 weight [out, in] whose values lie on a library's grid.

    `scale` and `zero` (the code of 0 where codes are counted from 0) are [out, groups]. FormatError for a scale that
    does not fit the type it is stored in.
    """
    levels = torch.round(split_groups(rounded, spec.group_size) / scale.unsqueeze(-1))
    if not spec.symmetric:
        levels += zero.unsqueeze(-1)
    stored = scale.to(dtype_of(spec.scale_dtype))
    if not bool(stored.isfinite().all()):
        fix = "; take scale_dtype: bfloat16 or float32" if spec.scale_dtype == "float16" else ""
        raise FormatError(f"{name}: a scale of {float(scale.max()):.3g} does not fit {spec.scale_dtype}{fix}")
    codes = join_groups(levels, rounded.shape[1]).to(torch.int16)
    # A copy: what a library makes in inference mode may not be written to later.
    return Codes(codes, stored.clone(), None if spec.symmetric else zero.to(torch.uint8))
