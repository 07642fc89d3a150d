"""The calibration batches of a `quantize` step, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mote_quant.data.calibration import calibration_batches, token_mask
from mote_quant.recipe.schema import Quantize
from mote_quant.steps.base import Context
from mote_quant.steps.quantize.walk import Batch


@dataclass(frozen=True)
class Calibrated:
    """`batches` are what methods may look at, `held_out` what errors are measured on; both empty without calibration.

    `masks` say of the batches, then of the held-out ones, which tokens are no padding (None: all).
    """

    batches: Sequence[Batch] = ()
    held_out: Sequence[Batch] = ()
    masks: Sequence[Tensor | None] = ()


def calibrate(model: nn.Module, config: Quantize, context: Context) -> Calibrated:
    """Draw the samples a recipe asks for; notes what was drawn. DataError when there are none."""
    calibration = config.calibration
    if calibration is None:
        return Calibrated()
    source = context.open_data(calibration.data, calibration.max_length)
    hold_out = config.measure != "none"
    drawn = calibration_batches(source, calibration.samples, calibration.batch_size, context.seed, hold_out)
    context.notes["calibration"] = {"data": calibration.data} | drawn.note
    device = next(model.parameters()).device
    batches = [_moved(batch, device) for batch in drawn.batches]
    held_out = [_moved(batch, device) for batch in drawn.held_out]
    return Calibrated(batches, held_out, [token_mask(batch) for batch in (*batches, *held_out)])


def _moved(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) for name, value in batch.items()}
