"""Post-training methods by the name a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping

from mote_quant.steps.quantize.methods.base import Codes, Method
from mote_quant.steps.quantize.methods.gptq import gptq
from mote_quant.steps.quantize.methods.hessian import HessianSum
from mote_quant.steps.quantize.methods.rtn import rtn

METHODS: Mapping[str, Method] = {"rtn": rtn, "gptq": gptq}
NEEDS_CALIBRATION = frozenset({"gptq"})

__all__ = ["METHODS", "NEEDS_CALIBRATION", "Codes", "HessianSum", "Method", "gptq", "rtn"]
