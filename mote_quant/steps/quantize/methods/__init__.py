"""Post-training methods by the name a recipe gives them."""

from __future__ import annotations

from collections.abc import Mapping

from mote_quant.steps.quantize.methods.awq import awq
from mote_quant.steps.quantize.methods.base import Codes, Method, Seen
from mote_quant.steps.quantize.methods.gptq import gptq
from mote_quant.steps.quantize.methods.hessian import HessianSum
from mote_quant.steps.quantize.methods.hqq import hqq
from mote_quant.steps.quantize.methods.rtn import rtn

METHODS: Mapping[str, Method] = {"rtn": rtn, "gptq": gptq, "awq": awq, "hqq": hqq}
NEEDS: Mapping[str, frozenset[str]] = {
    "rtn": frozenset(),
    "gptq": frozenset({"hessian"}),
    "awq": frozenset({"inputs"}),
    "hqq": frozenset(),
}
"""Which parts of `Seen` a method reads; one that reads none needs no calibration."""

__all__ = ["METHODS", "NEEDS", "Codes", "HessianSum", "Method", "Seen", "awq", "gptq", "hqq", "rtn"]
