"""What each choice for each unit is predicted to do to the logits, measured on calibration batches.

Two measurements are multiplied. Exact for every choice, yet of the block alone: how far the output of the block a unit
lies in (an expert, an attention) moves, with the weights that the recipe's method finds, each token counted with its
router weight. And what such a change does to the logits: the KL divergence with all units of one kind in one layer at a
middle choice, over the change of output they cause together. KL is nearly proportional to that change over all choices,
so one such factor a layer and kind will do. Layer by layer; memory: the layer's quantized weights and statistics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mote_quant.data.calibration import token_mask
from mote_quant.errors import CalibrationError
from mote_quant.formats import format_for
from mote_quant.hf.structure import is_transposed
from mote_quant.moe.experts import Expert
from mote_quant.recipe.schema import AutoBits, IntegerBits
from mote_quant.steps.base import Progress
from mote_quant.steps.quantize.allocate.routing import Routing, Traffic
from mote_quant.steps.quantize.allocate.trials import Called, Key, Trials, Weights, swapped
from mote_quant.steps.quantize.allocate.units import Unit, parent
from mote_quant.steps.quantize.measure import Reference
from mote_quant.steps.quantize.methods import METHODS, NEEDS, Seen, rtn
from mote_quant.steps.quantize.observe import Observers
from mote_quant.steps.quantize.walk import Batch, Walk

TRIED_TOKENS = 16384
"""Tokens (the first of the calibration) on which choices are tried out; statistics are of all of them."""
COMPARED_TOKENS = 4096
"""Tokens (the first of the calibration) run to compare logits."""
_LEAST_KL = 1e-12


@dataclass(frozen=True)
class Sensitivity:
    """`losses`: predicted KL divergence of the logits in nats a token, by format.

    `tokens` is how many the unit's modules saw on average; `frequency` the share of its layer's tokens a routed expert
    got and `gate` their mean router weight, both 1 for what is not routed.
    """

    tokens: float
    frequency: float
    gate: float
    losses: Mapping[str, float]


class Meter:
    """`measure()` gives the sensitivity of every unit; the model is the same afterwards."""

    def __init__(self, model: nn.Module, units: Sequence[Unit], batches: Sequence[Batch]) -> None:
        self._model = model
        self._unit_of = {name: unit for unit in units for name in unit.modules}
        self._losses = {unit: dict.fromkeys(map(str, unit.spec.choices), 0.0) for unit in units}
        self._tokens: dict[str, int] = {}
        self._masks = [token_mask(dict(batch)) for batch in batches]
        needs = {name: NEEDS[unit.spec.method] for name, unit in self._unit_of.items()}
        self._observers = Observers(model, needs, self._masks, len(batches))
        self._routing = Routing(model, self._masks)
        self._walk = Walk(model, batches, self._begin)
        self._reference = Reference(model, _first(batches, COMPARED_TOKENS))
        self._tried = len(_first(batches, TRIED_TOKENS))
        self._batch = 0
        self._trials: Trials | None = None

    @torch.no_grad()
    def measure(self, progress: Progress) -> dict[Unit, Sensitivity]:
        """Show every stage of the model the batches twice: to gather statistics, and to try the choices out."""
        progress.start("deciding bits", len(self._unit_of))
        for stage, names in enumerate(self._walk.stages(list(self._unit_of))):
            if names:
                self._measure(stage, names)
                progress.advance(len(self._tokens))
            self._walk.leave(stage)
        return {unit: self._described(unit, losses) for unit, losses in self._losses.items()}

    def _begin(self, batch: int) -> None:
        self._batch = batch
        self._observers.begin(batch)
        self._routing.begin(batch)
        if self._trials is not None:
            self._trials.paused = batch >= self._tried

    def _measure(self, stage: int, names: Sequence[str]) -> None:
        called = Called(self._model, {parent(name) for name in names})
        with self._observers.watching(set(names)), self._routing.watching(names, count=True), called.watching():
            self._walk.run(stage)
        weights = {name: self._choices(name) for name in names}
        blocks = {name: parent(name) if parent(name) in called.blocks else name for name in names}
        self._trials = trials = Trials(self._model, _trials(blocks, weights, self._unit_of), self._weigh)
        with self._routing.watching(names, count=False), trials.watching():
            self._walk.run(stage)
        for site in dict.fromkeys(self._site(block) for block in blocks.values()):
            inside = {block for block in blocks.values() if self._site(block) == site}
            middle = {
                name: weights[name][_middle(self._unit_of[name].spec)] for name in names if blocks[name] in inside
            }
            self._add_losses({key: error for key, error in trials.errors.items() if key[0] in inside}, middle)
        self._trials = None

    def _choices(self, name: str) -> dict[str, Tensor]:
        """The weight of a module as each choice would have it, laid out as the module's own."""
        linear = self._model.get_submodule(name)
        own = linear.get_parameter("weight")
        weight = own.t() if is_transposed(linear) else own
        spec, seen = self._unit_of[name].spec, self._observers.seen(name)
        found = {format: _rounded(weight, spec.choice(format), seen, name) for format in spec.choices}
        self._tokens[name] = self._observers.tokens(name)
        self._observers.forget(name)
        return {format: dense.t() if is_transposed(linear) else dense for format, dense in found.items()}

    def _weigh(self, block: str, rows: tuple[int, ...]) -> Tensor | None:
        """What tokens count in a block: their router weight, and nothing for padding."""
        traffic, mask = self._traffic(block), self._masks[self._batch]
        if traffic is not None and traffic.running is not None and tuple(traffic.running.shape) == rows:
            return traffic.running
        return mask.float() if mask is not None and tuple(mask.shape) == rows else None

    def _add_losses(self, errors: Mapping[tuple[str, Key], float], middle: Weights) -> None:
        """Turn the errors of one site into KL, of which the `middle` choices show how much the site is good for."""
        weighted = {key: error * self._importance(key[0], key[1][0]) for key, error in errors.items()}
        together = sum(error for (_, (unit, format)), error in weighted.items() if format == _middle(unit.spec))
        if not together:
            return
        with swapped(self._model, middle):
            kl = max(self._reference.distance(self._model).kl, _LEAST_KL)
        if not (math.isfinite(together) and math.isfinite(kl)):
            raise CalibrationError(
                f"{next(iter(middle))}: bits: auto cannot be decided, since what the model computes on the calibration "
                "samples is not finite; calibrate in float32 or bfloat16"
            )
        for (_, (unit, format)), error in weighted.items():
            self._losses[unit][format] += kl / together * error

    def _importance(self, block: str, unit: Unit) -> float:
        """What an error counts beyond itself: for `mc` the expert's frequency times its mean weight over all tokens."""
        traffic = self._traffic(block)
        if unit.spec.sensitivity == "logits" or traffic is None:
            return 1.0
        return traffic.frequency * (traffic.frequency * traffic.gate)

    def _traffic(self, block: str) -> Traffic | None:
        return self._routing.experts.get(block) or self._routing.experts.get(parent(block))

    def _site(self, block: str) -> str:
        """What shares a factor: the experts of a layer, else a block by itself."""
        return parent(block) if isinstance(self._model.get_submodule(block), Expert) else block

    def _described(self, unit: Unit, losses: Mapping[str, float]) -> Sensitivity:
        traffic = [found for name in unit.modules if (found := self._traffic(parent(name))) is not None]
        return Sensitivity(
            tokens=_mean([self._tokens[name] for name in unit.modules]),
            frequency=_mean([each.frequency for each in traffic]),
            gate=_mean([each.gate for each in traffic]),
            losses=losses,
        )


def _trials(
    blocks: Mapping[str, str], weights: Mapping[str, Mapping[str, Tensor]], unit_of: Mapping[str, Unit]
) -> dict[str, dict[Key, dict[str, Tensor]]]:
    """By block: for each unit with modules in there and each choice, the weights of those modules."""
    trials: dict[str, dict[Key, dict[str, Tensor]]] = {}
    for name, block in blocks.items():
        for format, weight in weights[name].items():
            trials.setdefault(block, {}).setdefault((unit_of[name], format), {})[name] = weight
    return trials


def _rounded(weight: Tensor, spec: IntegerBits, seen: Seen | None, name: str) -> Tensor:
    """The weight [out, in] there and back; rounded to nearest where the method needs inputs and there are none."""
    method = rtn if seen is None and NEEDS[spec.method] else METHODS[spec.method]
    form = format_for(spec)
    tensors = form.compress(method(weight, spec, seen, name=name))
    return form.decompress(tensors, (weight.shape[0], weight.shape[1]), weight.dtype)


def _middle(spec: AutoBits) -> str:
    ordered = sorted(spec.choices)
    return ordered[(len(ordered) - 1) // 2]


def _first(batches: Sequence[Batch], tokens: int) -> Sequence[Batch]:
    """As many batches from the start as hold so many tokens, one at least."""
    counts = itertools.accumulate(batch["input_ids"].numel() for batch in batches)
    return batches[: 1 + sum(count < tokens for count in counts)]


def _mean(values: Sequence[float]) -> float:
    """1 for none: of what is not routed every token is its own, at full weight."""
    return sum(values) / len(values) if values else 1.0
