"""The `quantize` step: decide formats, integers stage by stage, float casts, the end of the latents' training."""

from __future__ import annotations

import logging
import time

import torch
from torch import nn

from mote_quant.anatomy.roles import roles
from mote_quant.hf.attach import attach
from mote_quant.hf.unfuse import unfuse_named
from mote_quant.recipe.schema import AutoBits, CodebookBits, FloatBits, IntegerBits, Quantize, trains
from mote_quant.steps.base import Context
from mote_quant.steps.quantize.calibrate import Calibrated, calibrate
from mote_quant.steps.quantize.casts import cast_parameters
from mote_quant.steps.quantize.engine import Engine, Spec
from mote_quant.steps.quantize.latents import pack_latents
from mote_quant.steps.quantize.measure import Reference, moved

_log = logging.getLogger(__name__)


@torch.no_grad()
def run(model: nn.Module, config: Quantize, context: Context) -> nn.Module:
    """Quantize `model` in place; notes say per module how, how well and on how many tokens, and how logits moved."""
    started = time.monotonic()
    model.eval()
    unfuse_named(model, context.formats)
    data = calibrate(model, config, context)
    specs = _decided(model, data, context)
    reference = Reference(model, data.held_out) if config.measure != "none" and data.held_out else None
    engine = Engine(model, data, config, context.progress)
    role_of = roles(model)
    named_roles = {name: role_of(name) for name in specs}
    engine.quantize(specs)
    notes = context.notes
    notes["modules"] = {name: {"role": named_roles[name]} | note for name, note in engine.notes.items()}
    if reference is not None:
        notes["outputs"] = moved(model, reference, engine.dense, named_roles)
    # Last, so that calibration runs in the types the model was trained in.
    cast_parameters(model, {name: spec for name, spec in context.formats.items() if isinstance(spec, FloatBits)})
    if not config.keep_latents:
        pack_latents(model)
    attach(model, finished=True)
    if config.skip_rate:
        from mote_quant.moe.skip import skip_experts

        notes["skip"] = skip_experts(model, data.batches, data.held_out, config.skip_rate)
        attach(model, finished=True)
    notes["seconds"] = round(time.monotonic() - started, 3)
    return model


def _decided(model: nn.Module, data: Calibrated, context: Context) -> dict[str, Spec]:
    """The packed format of every module; what `auto` decides is entered into `context.formats`."""
    autos = {name: spec for name, spec in context.formats.items() if isinstance(spec, AutoBits)}
    if autos:
        from mote_quant.steps.quantize.allocate import decide_formats

        context.formats |= decide_formats(model, autos, data.batches, context.progress, context.notes)
    packed = {name: spec for name, spec in context.formats.items() if isinstance(spec, IntegerBits | CodebookBits)}
    return {name: spec for name, spec in packed.items() if not trains(spec)}
