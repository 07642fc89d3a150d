"""How long each part of a run takes: the work counted from the plan, over the rates of this machine.

Rates are of one large piece, on a machine that may be busy just then; runs consist of many small ones. What runs that
were measured took lay between half and three times the work over the rates, so that is the range.
"""

from __future__ import annotations

from collections.abc import Mapping

from mote_quant.data.calibration import HELD_OUT_SHARE
from mote_quant.estimate.disk import checkpoints, held, state_bytes
from mote_quant.estimate.formulas import DEFAULT_LENGTH, tokens
from mote_quant.estimate.memory import inputs
from mote_quant.estimate.rates import Rates
from mote_quant.estimate.report import Seconds
from mote_quant.estimate.sizes import FLOAT, Rounded, Sizes
from mote_quant.recipe.schema import IntegerBits, Quantize, Train
from mote_quant.steps.quantize.methods import NEEDS

_LEAST, _MOST = 0.5, 3.0
_STARTUP = 1.0, 6.0
"""Imports that are still to come, skeletons, the tokenizer. Reading training data is not counted."""
_PACKING = 8
"""Roundings that making an expert's weights, finding their codes and packing them is worth."""
_CLIP_SEARCH = 20
"""How many times a searched range is tried, about."""


def loading(sizes: Sizes, rates: Rates) -> Seconds:
    """Read every byte, hash it, look for NaN."""
    size = sizes.plan.dense.stored_bytes
    low, high = _range(size / rates.read + size / rates.hash + 2 * size / rates.copy)
    return low + _STARTUP[0], high + _STARTUP[1]


def upcycling(sizes: Sizes, rates: Rates) -> Seconds:
    """Write the experts, and ask the model something before and after."""
    return _range((2 * sizes.experts_bytes + sizes.dense_bytes) / rates.copy + _forward(sizes, 64, rates.float32))


def training(sizes: Sizes, config: Train, numbers: Mapping[str, int], rates: Rates) -> Seconds:
    """Forward, backward, rounding of the latent weights and optimizer of every step; checkpoints; the state after.

    `numbers` are those that train, by role.
    """
    trained, bytes_held = sum(numbers.values()), sum(held(sizes, config, numbers))
    rate = rates.bfloat16 if config.precision == "bfloat16" else rates.float32
    share = min(trained / max(sizes.of_role("routed", "shared", "ffn", "attention"), 1), 1.0)
    one = _forward(sizes, tokens(config), rate) * (2 + share) + trained / rates.rounding
    step = config.gradient_accumulation * one + bytes_held * 2 / rates.copy
    written = checkpoints(config) * bytes_held + state_bytes(sizes)
    return _range(config.steps * step + written * (1 / rates.write + 1 / rates.hash))


def quantizing(sizes: Sizes, config: Quantize, rates: Rates) -> Seconds:
    """Calibration (each layer runs twice), sums of Hessians, codes."""
    seen = calibration_tokens(config)
    passes = 3 * _forward(sizes, seen, rates.float32 if sizes.width >= FLOAT else rates.bfloat16)
    watched = [item for item in sizes.rounded if isinstance(item.spec, IntegerBits) and _looks(item.spec)]
    sums = sum(seen * width**2 for width in inputs(watched)) / rates.float32
    return _range(passes + sums + sum(_codes(item, rates) for item in sizes.rounded))


def streaming(sizes: Sizes, config: Quantize, rates: Rates) -> Seconds:
    """Quantizing, and on the way: the experts of each layer made and packed, each layer written and hashed."""
    low, high = quantizing(sizes, config, rates)
    made = sizes.of_role("routed") if sizes.plan.layouts else 0
    own = _PACKING * made / rates.rounding + _kept(sizes.result_bytes, rates)
    return low + _range(own)[0], high + _range(own)[1]


def saving(sizes: Sizes, rates: Rates) -> Seconds:
    """Write the finished model and hash it."""
    return _range(_kept(sizes.result_bytes, rates))


def calibration_tokens(config: Quantize) -> int:
    """Tokens that calibration shows the model, those held out included."""
    if config.calibration is None:
        return 0
    samples = config.calibration.samples * (1 + 1 / HELD_OUT_SHARE)
    return round(samples * (config.calibration.max_length or DEFAULT_LENGTH))


def _forward(sizes: Sizes, count: int, rate: float) -> float:
    return 2 * sizes.active * count / rate


def _codes(item: Rounded, rates: Rates) -> float:
    """Seconds to find the codes of one weight and to pack them."""
    if not isinstance(item.spec, IntegerBits):
        return 2 * item.weights / rates.rounding
    searched = _CLIP_SEARCH if item.spec.clip == "search" else 1
    rounding = searched * item.weights / rates.rounding
    if "hessian" in NEEDS[item.spec.method]:
        return rounding + (item.rows * item.columns**2 + item.columns**3 / 3) / rates.float32
    return rounding * (_CLIP_SEARCH if item.spec.method in ("awq", "hqq") else 1)


def _looks(spec: IntegerBits) -> bool:
    return bool(NEEDS[spec.method])


def _kept(size: int, rates: Rates) -> float:
    return size / rates.write + size / rates.hash


def _range(seconds: float) -> Seconds:
    return _LEAST * seconds, _MOST * seconds
