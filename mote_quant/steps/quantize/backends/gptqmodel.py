"""GPTQ by gptqmodel, one weight at a time: its solver is given our Hessian, its codes are had before it packs them.

The weight is shown to it in a plain float32 linear layer, so the model it comes from may be of any kind, and stays as
it is. With `act_order`, groups are static: the columns of a group are those that lie side by side.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mote_quant.errors import CalibrationError
from mote_quant.formats import Codes
from mote_quant.formats.integer import BITS
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.backends.extras import contained, load
from mote_quant.steps.quantize.backends.taking import hessian_of, take
from mote_quant.steps.quantize.methods.base import Seen, finite_weight

_BACKEND = "gptqmodel"


def gptq(weight: Tensor, spec: IntegerBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """gptqmodel's codes of a weight [out, in]. MissingExtraError, or CalibrationError where it would only round."""
    values, (hessian, tokens) = finite_weight(weight, name), hessian_of(seen, name)
    library = load(_BACKEND, "gptqmodel.quantization")
    with contained(_BACKEND):
        task = library.GPTQ(_linear(values), _config(library, spec))
        task.quantizer.configure(perchannel=True)
        task.H, task.nsamples = hessian, tokens
        rounded, scale, zero, _, _, _, damping, _ = task.quantize()
    if damping >= 1.0:  # how it says that no damping helped, and that it has rounded to nearest
        raise CalibrationError(
            f"{name}: gptqmodel finds that the Hessian is not positive definite, whatever the damping; "
            "calibrate on more samples, or use rtn"
        )
    return take(rounded, scale, zero, spec, name)


def _linear(values: Tensor) -> nn.Linear:
    """A linear layer that is nothing but the weight [out, in]."""
    rows, columns = values.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(values, requires_grad=False)
    return linear


def _config(library: Any, spec: IntegerBits) -> Any:
    return library.QuantizeConfig(
        bits=BITS[spec.format],
        group_size=spec.group_size,
        sym=spec.symmetric,
        desc_act=spec.act_order,
        # Whole rows are one static group as it is; to ask for it again would be a division by their size, -1.
        static_groups=spec.act_order and spec.group_size != -1,
        act_group_aware=False,
        damp_percent=spec.damping,
        fallback=None,
        offload_to_disk=False,
    )
