"""Libraries that find codes in the place of our own methods, by the `backend` and the `method` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping

from mote_quant.steps.quantize.backends import bitsandbytes, gptqmodel, llmcompressor
from mote_quant.steps.quantize.backends.extras import EXTRAS, require
from mote_quant.steps.quantize.methods.base import Method

BACKENDS: Mapping[tuple[str, str], Method] = {
    ("gptqmodel", "gptq"): gptqmodel.gptq,
    ("llmcompressor", "rtn"): llmcompressor.rtn,
    ("llmcompressor", "gptq"): llmcompressor.gptq,
    ("bitsandbytes", "rtn"): bitsandbytes.quantize_int8,
}
"""What a method reads of `Seen` is the same in every backend: `NEEDS`. Libraries are imported when one is called."""

__all__ = ["BACKENDS", "EXTRAS", "require"]
