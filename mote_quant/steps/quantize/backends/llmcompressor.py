"""Rounding and GPTQ by llm-compressor, one weight at a time: what its modifiers call once they have their Hessian.

Its `oneshot` takes whole models of its own kind only, and leaves its hooks in them; a weight it takes from anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import CalibrationError
from mote_quant.formats import Codes
from mote_quant.formats.groups import count_groups, group_width
from mote_quant.formats.integer import BITS
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.backends.extras import contained, load
from mote_quant.steps.quantize.backends.taking import hessian_of, take
from mote_quant.steps.quantize.methods.base import Seen, finite_weight

_BACKEND = "llmcompressor"


def rtn(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """llm-compressor's codes of a weight [out, in], each rounded to nearest; what calibration saw is not used."""
    values = _filled(finite_weight(weight, name), spec)
    forward = load(_BACKEND, "compressed_tensors.quantization.lifecycle.forward")
    with contained(_BACKEND):
        args = _args(spec)
        scale, zero = _grid(values, args)
        rounded = forward.fake_quantize(values, scale, zero, args)
    return _taken(rounded, scale, zero, weight.shape[1], spec, name)


def gptq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """llm-compressor's GPTQ codes of a weight [out, in]. CalibrationError where it would only round to nearest."""
    values, (hessian, _) = _filled(finite_weight(weight, name), spec), hessian_of(seen, name)
    library = load(_BACKEND, "llmcompressor.modifiers.gptq.gptq_quantize")
    with contained(_BACKEND):
        args = _args(spec)
        scale, zero = _grid(values, args)
        rounded, _, gave_up = library.quantize_weight(
            values[None].clone(),
            _widened(hessian, spec)[None],
            scale[None],
            zero[None],
            None,
            args,
            percdamp=spec.damping,
        )
    if bool(gave_up.any()):
        raise CalibrationError(
            f"{name}: llm-compressor finds that the Hessian is not positive definite, even with damping of "
            f"{spec.damping:g} times its mean diagonal; calibrate on more samples, or use rtn"
        )
    return _taken(rounded[0], scale, zero, weight.shape[1], spec, name)


def _args(spec: IntegerBits) -> Any:
    quantization = load(_BACKEND, "compressed_tensors.quantization")
    whole_rows = spec.group_size == -1
    return quantization.QuantizationArgs(
        num_bits=BITS[spec.format],
        type="int",
        symmetric=spec.symmetric,
        strategy="channel" if whole_rows else "group",
        group_size=None if whole_rows else spec.group_size,
        actorder="static" if spec.method == "gptq" and spec.act_order else None,
    )


def _grid(values: Tensor, args: Any) -> tuple[Tensor, Tensor]:
    """Its scales and zero points [out, groups]."""
    observer = load(_BACKEND, "llmcompressor.observers").Observer
    found = observer.load_from_registry("memoryless_minmax", base_name="weight", args=args)(values).get_qparams()
    return found["scale"], found["zero_point"]


def _taken(rounded: Tensor, scale: Tensor, zero: Tensor, columns: int, spec: IntegerBits, name: str) -> Codes:
    """Its codes are signed: what it calls 0 is in the middle of ours."""
    middle = 2 ** (BITS[spec.format] - 1)
    return take(rounded[:, :columns].float(), scale, zero.short() + middle, spec, name)


def _filled(values: Tensor, spec: IntegerBits) -> Tensor:
    """Zeros after the last column, to a whole number of groups, which it insists on; no grid changes by them."""
    return F.pad(values, (0, _missing(values.shape[1], spec)))


def _widened(hessian: Tensor, spec: IntegerBits) -> Tensor:
    """The Hessian with room for those zeros: uncorrelated columns of mean size, so that damping stays what it is."""
    columns, missing = len(hessian), _missing(len(hessian), spec)
    wide = F.pad(hessian, (0, missing, 0, missing))
    wide.diagonal()[columns:] = torch.mean(hessian.diagonal())
    return wide


def _missing(columns: int, spec: IntegerBits) -> int:
    return count_groups(spec.group_size, columns) * group_width(spec.group_size, columns) - columns
