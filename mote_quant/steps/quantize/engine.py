"""Quantize modules stage by stage: watch what goes in, find codes, pack, measure, move on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor, nn

from mote_quant.errors import CalibrationError
from mote_quant.formats import Codes
from mote_quant.hf.structure import is_transposed, replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.memory.stored import stored_bits
from mote_quant.recipe.schema import CodebookBits, IntegerBits, Quantize
from mote_quant.steps.base import Progress
from mote_quant.steps.quantize.backends import BACKENDS, require
from mote_quant.steps.quantize.calibrate import Calibrated
from mote_quant.steps.quantize.measure import output_error, weight_error
from mote_quant.steps.quantize.methods import METHODS, NEEDS, Method, Seen, rtn
from mote_quant.steps.quantize.methods.codebook import codes_for
from mote_quant.steps.quantize.observe import Observers
from mote_quant.steps.quantize.walk import Walk

_log = logging.getLogger(__name__)

Spec = IntegerBits | CodebookBits


class Stages(Protocol):
    """Whoever has more to do in each stage (see `walk.stage_of`) than to quantize its modules."""

    def begin(self, stage: int) -> bool:
        """Called before a stage; False: its modules are quantized already."""
        ...

    def end(self, stage: int) -> None:
        """Called when a stage is quantized, before what it puts out is shown to the next."""


class Nobody:
    """Stages that are only quantized."""

    def begin(self, stage: int) -> bool:
        """Always to be quantized."""
        return True

    def end(self, stage: int) -> None:
        """Nothing."""


@dataclass
class Engine:
    """`notes` is a row a module, for the report; `dense` the modules as they were, when roles are to be measured."""

    model: nn.Module
    data: Calibrated
    config: Quantize
    progress: Progress
    beside: Stages = field(default_factory=Nobody)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    dense: dict[str, nn.Module] = field(default_factory=dict)

    def quantize(self, specs: Mapping[str, Spec]) -> None:
        """Replace every named module by a packed one. Raises CalibrationError, BadWeightsError, FormatError."""
        self.progress.start("quantizing", len(specs))
        for spec in specs.values():
            require(spec.backend)
        needs = {name: _needs(spec) for name, spec in specs.items()}
        if any(needs.values()) and not self.data.batches:
            raise CalibrationError("a method of this recipe needs data: give quantize.calibration")
        observers = Observers(self.model, needs, self.data.masks, len(self.data.batches))
        walk = Walk(self.model, (*self.data.batches, *self.data.held_out), observers.begin)
        for stage, names in enumerate(walk.stages(list(specs))):
            if self.beside.begin(stage):
                if names and (self.data.held_out or any(needs[name] for name in names)):
                    self._watch(walk, stage, names, observers)
                for name in names:
                    self._quantize(name, specs[name], observers)
                    observers.forget(name)
                    self.progress.advance(len(self.notes))
            self.beside.end(stage)
            if self.data.batches:
                walk.leave(stage)

    def _watch(self, walk: Walk, stage: int, names: list[str], observers: Observers) -> None:
        with observers.watching(set(names)):
            walk.run(stage)
        if self.config.unhit == "route_all":
            unhit = {name for name in names if not observers.tokens(name)}
            with observers.watching(unhit), _visiting(self.model, unhit):
                walk.run(stage)

    def _quantize(self, name: str, spec: Spec, observers: Observers) -> None:
        started = time.monotonic()
        linear = self.model.get_submodule(name)
        weight = cast(Tensor, linear.weight)
        weight = weight.t() if is_transposed(linear) else weight
        note: dict[str, Any] = {"method": getattr(spec, "method", "rtn"), "format": spec.format}
        if isinstance(spec, IntegerBits):
            note["group_size"] = spec.group_size
        if spec.backend != "own":
            note["backend"] = spec.backend
        codes = self._codes(name, weight, spec, observers, note)
        bias = cast("Tensor | None", getattr(linear, "bias", None))
        packed = PackedLinear.pack(spec, codes, bias, weight.dtype)
        note |= {"bits": stored_bits(packed), "weight_error": weight_error(weight, packed)}
        note["output_error"] = output_error(weight, packed, observers.held_out(name))
        note["tokens"] = observers.tokens(name) if self.data.batches else None
        replace_module(self.model, name, packed)
        if self.config.measure == "roles" and self.data.held_out:
            self.dense[name] = linear
        self.notes[name] = note | {"seconds": round(time.monotonic() - started, 4)}

    def _codes(self, name: str, weight: Tensor, spec: Spec, observers: Observers, note: dict[str, Any]) -> Codes:
        if isinstance(spec, CodebookBits):
            return codes_for(weight, spec, name=name)
        method = _method(spec)
        if not NEEDS[spec.method]:
            return method(weight, spec, name=name)
        seen = observers.seen(name)
        if seen is None:
            return self._unhit(name, weight, spec, note)
        _warn_of_few(name, seen, weight.shape[1], note)
        return method(weight, spec, seen, name=name)

    def _unhit(self, name: str, weight: Tensor, spec: IntegerBits, note: dict[str, Any]) -> Codes:
        if self.config.unhit == "error":
            raise CalibrationError(
                f"{name} saw no calibration token: use more calibration.samples, or unhit: fallback_rtn"
            )
        _log.warning("%s saw no calibration token; rounded to nearest instead of %s", name, spec.method)
        note["method"] = "rtn"
        note["fallback"] = f"no calibration token: rtn instead of {spec.method}"
        return rtn(weight, spec, name=name)


def _method(spec: IntegerBits) -> Method:
    return METHODS[spec.method] if spec.backend == "own" else BACKENDS[spec.backend, spec.method]


def _needs(spec: Spec) -> frozenset[str]:
    """What calibration has to gather for a module."""
    return NEEDS[spec.method] if isinstance(spec, IntegerBits) else frozenset()


def _warn_of_few(name: str, seen: Seen, columns: int, note: dict[str, Any]) -> None:
    """Fewer tokens than inputs leave a Hessian singular: damping carries it, but the result may be poor."""
    if seen.hessian is not None and seen.tokens < columns:
        note["few_tokens"] = True
        _log.warning("%s: %d calibration tokens for %d inputs; use more samples", name, seen.tokens, columns)


@contextmanager
def _visiting(model: nn.Module, unhit: set[str]) -> Iterator[None]:
    """While open, the experts of the named modules are shown every token that their layer is given."""
    handles = []
    for path, numbers in _experts_of(model, unhit).items():
        holder = model.get_submodule(path)
        handles.append(holder.register_forward_pre_hook(_visit(numbers), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _visit(numbers: set[int]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        for number in sorted(numbers):
            cast(Any, module).visit(number, x.reshape(-1, x.shape[-1]))

    return hook


def _experts_of(model: nn.Module, names: set[str]) -> dict[str, set[int]]:
    """Which experts, by their number, of which modules (those that have `visit`) hold the named ones."""
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            path = ".".join(parts[:end])
            if hasattr(model.get_submodule(path), "visit"):
                found.setdefault(path, set()).add(next(int(part) for part in parts[end:] if part.isdigit()))
                break
    return found
