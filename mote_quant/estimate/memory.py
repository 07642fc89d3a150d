"""The most memory that each part of a run holds at a time; what a training holds is in `training`.

Weights are mapped from their files and stay resident once read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from mote_quant.anatomy.inventory import Parameter
from mote_quant.data.calibration import HELD_OUT_SHARE
from mote_quant.estimate.formulas import DEFAULT_LENGTH
from mote_quant.estimate.sizes import FLOAT, Rounded, Sizes, largest, numbers
from mote_quant.recipe.schema import IntegerBits, Quantize
from mote_quant.steps.quantize.measure import POSITIONS
from mote_quant.steps.quantize.methods import NEEDS
from mote_quant.steps.quantize.methods.gptq import ROWS
from mote_quant.steps.quantize.spill import HELD_BYTES

RUNTIME = 640 * 2**20
"""Python with torch, transformers and datasets imported."""


def loading(sizes: Sizes) -> int:
    """Opened, hashed and checked: every page of the files has been read."""
    return RUNTIME + sizes.dense_bytes + round(largest(sizes.held) * sizes.width)


def upcycling(sizes: Sizes) -> int:
    """The dense model and the new experts beside it."""
    return RUNTIME + sizes.dense_bytes + sizes.experts_bytes + round(largest(sizes.held) * sizes.width)


def quantizing(sizes: Sizes, config: Quantize) -> int:
    """The model, what is packed beside it, and calibration: Hessians of one layer, logits before and after."""
    held = RUNTIME + sizes.dense_bytes + sizes.experts_bytes + sizes.packed_bytes
    return held + _calibrating(sizes, config) + _rounding(sizes.rounded)


def streaming(sizes: Sizes, config: Quantize) -> int:
    """One layer as it was, with its experts, and as it will be; the tables beside the layers one by one."""
    stages = sizes.stages()
    beside = largest(stages.pop(""))
    layers = max((_one_layer(sizes, path, held) for path, held in stages.items()), default=0)
    return RUNTIME + max(layers, 2 * round(beside * sizes.width)) + _calibrating(sizes, config)


def saving(sizes: Sizes) -> int:
    """The finished model, on its way to the disk."""
    return RUNTIME + sizes.plan.result.resident_bytes + largest(sizes.held) * FLOAT


def _one_layer(sizes: Sizes, path: str, held: list[Parameter]) -> int:
    dense = [parameter for parameter in held if parameter.role not in ("routed", "router")]
    layout = next((layout for layout in sizes.plan.layouts if sizes.stage_of(layout.path) == path), None)
    dropped = 3 * layout.hidden_size * layout.intermediate_size if layout is not None and not layout.shared else 0
    routed = [parameter for parameter in held if parameter.role == "routed"]
    # Packed one by one, as soon as each has its weights.
    expert = FLOAT * numbers(routed) // layout.experts if layout is not None else 0
    rounded = [item for item in sizes.rounded if sizes.stage_of(item.name) == path]
    before = round((numbers(dense) + dropped) * sizes.width)
    return before + expert + sum(parameter.nbytes for parameter in held) + _rounding(rounded)


def _calibrating(sizes: Sizes, config: Quantize) -> int:
    """Hidden states and Hessians of a layer, a batch on its way through it, log-probabilities to compare."""
    calibration = config.calibration
    if calibration is None:
        return 0
    length = calibration.max_length or DEFAULT_LENGTH
    batch = calibration.batch_size * length
    inner = 4 * sizes.hidden + sizes.attention + 3 * sizes.feed_forward
    compared = 0
    if config.measure != "none":
        width = round(sizes.width)
        compared = POSITIONS * sizes.vocabulary * 2 * FLOAT + length * sizes.vocabulary * (width + FLOAT)
    return min(HELD_BYTES, spilled(sizes, config, 0)) + hessians(sizes) + batch * inner * FLOAT + compared


def spilled(sizes: Sizes, config: Quantize, held: int = HELD_BYTES) -> int:
    """Bytes of hidden states between two layers, beyond the first `held`, which lie in memory."""
    if config.calibration is None:
        return 0
    samples = config.calibration.samples * (1 + 1 / HELD_OUT_SHARE)
    length = config.calibration.max_length or DEFAULT_LENGTH
    return max(round(samples * length * sizes.hidden * sizes.width) - held, 0)


def hessians(sizes: Sizes) -> int:
    """All Hessians that are summed at the same time: those of one decoder layer, or of what stands beside them."""
    stages: dict[str, list[Rounded]] = defaultdict(list)
    for item in sizes.rounded:
        if isinstance(item.spec, IntegerBits) and "hessian" in NEEDS[item.spec.method]:
            stages[sizes.stage_of(item.name)].append(item)
    return max((FLOAT * sum(side**2 for side in inputs(items)) for items in stages.values()), default=0)


def inputs(items: Iterable[Rounded]) -> list[int]:
    """Widths of the different inputs that some weights have; neighbours of one width share theirs.

    Three or more of one width are the projections of an attention: the last of them reads what the others made.
    """
    alike: dict[tuple[str, int], int] = defaultdict(int)
    for item in items:
        alike[item.name.rpartition(".")[0], item.columns] += 1
    return [width for (_, width), count in alike.items() for _ in range(2 if count > 2 else 1)]


def _rounding(items: Iterable[Rounded]) -> int:
    """Working copies for one weight: float32, and what a method moves a few thousand rows at a time."""
    return max((_working(item) for item in items), default=0)


def _working(item: Rounded) -> int:
    if not (isinstance(item.spec, IntegerBits) and "hessian" in NEEDS[item.spec.method]):
        return 3 * FLOAT * item.weights
    moved = min(item.rows, ROWS) * item.columns
    return math.ceil(FLOAT * item.weights + 2.5 * FLOAT * moved + FLOAT * item.columns**2)
