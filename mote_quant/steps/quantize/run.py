"""The `quantize` step: float casts, post-training integers stage by stage, the end of the latents' training."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import CalibrationError, DataError
from mote_quant.hf.attach import attach
from mote_quant.hf.structure import is_transposed, replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import Calibration, FloatBits, IntegerBits, Quantize
from mote_quant.steps.base import Context
from mote_quant.steps.quantize.casts import cast_parameters
from mote_quant.steps.quantize.methods import METHODS, NEEDS_CALIBRATION, HessianSum, rtn
from mote_quant.steps.quantize.walk import Batch, Walk

_log = logging.getLogger(__name__)


@torch.no_grad()
def run(model: nn.Module, config: Quantize, context: Context) -> nn.Module:
    """Quantize `model` in place; notes per module the method, format and calibration tokens."""
    started = time.monotonic()
    model.eval()
    integers = {name: spec for name, spec in context.formats.items() if isinstance(spec, IntegerBits)}
    batches = _batches(model, config.calibration, context) if _needs_data(integers) else []
    context.notes["modules"] = _quantize_in_stages(model, integers, batches, config, context)
    # Last, so that calibration runs in the types the model was trained in.
    cast_parameters(model, {name: spec for name, spec in context.formats.items() if isinstance(spec, FloatBits)})
    attach(model, finished=True)
    context.notes["seconds"] = round(time.monotonic() - started, 3)
    return model


def _needs_data(integers: dict[str, IntegerBits]) -> bool:
    return any(spec.method in NEEDS_CALIBRATION for spec in integers.values())


def _quantize_in_stages(
    model: nn.Module, integers: dict[str, IntegerBits], batches: Sequence[Batch], config: Quantize, context: Context
) -> dict[str, dict[str, Any]]:
    notes: dict[str, dict[str, Any]] = {}
    walk = Walk(model, batches)
    context.progress.start("quantizing", len(integers))
    for stage, names in enumerate(walk.stages(list(integers))):
        sums = {name: _hessian(model, name) for name in names if integers[name].method in NEEDS_CALIBRATION}
        if sums:
            with _watching(model, sums):
                walk.run(stage)
        for name in names:
            notes[name] = _quantize(model, name, integers[name], sums.get(name), config)
            context.progress.advance(len(notes))
        if batches:
            walk.leave(stage)
    return notes


def _hessian(model: nn.Module, name: str) -> HessianSum:
    weight = cast(Tensor, model.get_submodule(name).weight)
    columns = weight.shape[0 if is_transposed(model.get_submodule(name)) else 1]
    return HessianSum(columns, name=name, device=weight.device)


@contextmanager
def _watching(model: nn.Module, sums: dict[str, HessianSum]) -> Iterator[None]:
    """While open, every input of the named modules is added to its sum."""

    def hook(total: HessianSum) -> Any:
        return lambda module, args: total.add(args[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(total)) for name, total in sums.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quantize(
    model: nn.Module, name: str, spec: IntegerBits, total: HessianSum | None, config: Quantize
) -> dict[str, Any]:
    linear = model.get_submodule(name)
    weight = cast(Tensor, linear.weight)
    weight = weight.t() if is_transposed(linear) else weight
    note: dict[str, Any] = {"method": spec.method, "format": spec.format, "group_size": spec.group_size}
    if total is not None:
        note["tokens"] = total.tokens
    if total is not None and total.tokens == 0:
        if config.unhit == "error":
            raise CalibrationError(
                f"{name} saw no calibration token: use more calibration.samples, or unhit: fallback_rtn"
            )
        _log.warning("%s saw no calibration token; rounded to nearest instead of %s", name, spec.method)
        note["method"] = "rtn (no calibration token)"
        codes = rtn(weight, spec, name=name)
    else:
        codes = METHODS[spec.method](weight, spec, None if total is None else total.value(), name=name)
    bias = cast("Tensor | None", getattr(linear, "bias", None))
    packed = PackedLinear.pack(spec, codes.codes, codes.scale, codes.zero, bias, weight.dtype)
    replace_module(model, name, packed)
    return note


def _batches(model: nn.Module, calibration: Calibration | None, context: Context) -> list[Batch]:
    if calibration is None:
        raise CalibrationError("a method of this recipe needs data: give quantize.calibration")
    source = context.open_data(calibration.data, calibration.max_length)
    if len(source.train) < 1:
        raise DataError(f"{calibration.data} has no samples to calibrate with")
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(context.seed))
    chosen = [source.train[int(index)] for index in order[: calibration.samples]]
    context.notes["calibration"] = {"data": calibration.data, "samples": len(chosen)}
    device = next(model.parameters()).device
    size = calibration.batch_size
    collated = (source.collate(chosen[start : start + size]) for start in range(0, len(chosen), size))
    return [{key: value.to(device) for key, value in batch.items() if key != "labels"} for batch in collated]
