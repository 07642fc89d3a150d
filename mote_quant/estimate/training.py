"""What each device holds while a recipe trains, kind by kind: alone, or one of several that share the work."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mote_quant.errors import RequestError
from mote_quant.estimate import formulas
from mote_quant.estimate.imagined import Imagined, imagine
from mote_quant.estimate.sizes import FLOAT, Sizes
from mote_quant.estimate.timeline import AFTER, BEFORE, BETWEEN, Held
from mote_quant.parallel.sharings import Sharding
from mote_quant.recipe.schema import Train

_LEAST_8BIT = 4096
"""Numbers of a tensor from which its states are held in 8 bits."""
_KERNEL, _KERNELS, _SHAPES = round(0.4 * 2**20), 1024, 7
"""Bytes of the code that oneDNN keeps for a product in bfloat16, how often it does at most, and for how many products
of an expert, whose numbers of tokens are never the same."""
_WHOLE_LAYERS = 2
"""Layers that FSDP2 holds whole at a time: one at work, one on its way."""
_MOVING = "moving"
"""The part of a step in which the optimizer moves weights."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device at the fullest moment of a training; what Python and its libraries take comes on top.

    `exchange` is what sharing needs: DDP's buckets, or all that FSDP2 holds whole. `teacher` with its logits; `kernels`
    is code that oneDNN makes on a CPU.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    exchange: int
    teacher: int
    kernels: int

    @property
    def total(self) -> int:
        """All kinds."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, int]:
        """Kind -> bytes."""
        return asdict(self)


@dataclass(frozen=True)
class Training:
    """A train step of a plan, carried out by `processes` on a device each; on GPUs where `accelerated`.

    RequestError where they cannot share its batches.
    """

    sizes: Sizes
    config: Train
    processes: int = 1
    accelerated: bool = False

    def footprint(self, sharding: Sharding = "ddp") -> Footprint:
        """What one device holds when it holds most: in the middle of a step, or while the optimizer moves weights."""
        share = 1 / self.processes if sharding == "fsdp2" else 1.0
        held = self._fullest(share, sharding)
        return Footprint(
            weights=math.ceil(share * self.model.weights),
            optimizer=math.ceil(share * states(self.model.trained, self.config)),
            gradients=math.ceil(share * held.gradients),
            activations=held.activations,
            exchange=held.exchange,
            teacher=formulas.teaching(self.sizes, self.own),
            kernels=self._kernels,
        )

    @cached_property
    def model(self) -> Imagined:
        """The model, and the step of one process."""
        sizes = self.sizes
        return imagine(sizes.plan, sizes.skeleton, self.own, formulas.length(self.own), packs=not self.accelerated)

    @property
    def own(self) -> Train:
        """What one process is told: the batch of a recipe is that of all of them."""
        own, rest = divmod(self.config.batch_size, self.processes)
        if rest:
            raise RequestError(
                f"train.batch_size: {self.config.batch_size} samples cannot be shared by {self.processes} processes; "
                f"take a multiple of {self.processes} (a batch is that of all processes together)"
            )
        return self.config.model_copy(update={"batch_size": own})

    def among(self, processes: int) -> Training:
        """The same for more processes, with as much to do for each as one of these has: what was found of it stays."""
        config = self.config.model_copy(update={"batch_size": processes * self.own.batch_size})
        other = replace(self, config=config, processes=processes)
        vars(other)["model"] = self.model
        return other

    def to_dict(self, sharding: Sharding) -> dict[str, Any]:
        """JSON-ready: who trains, and the bytes on each device."""
        found = self.footprint(sharding)
        how = {"processes": self.processes, "sharding": sharding, "traced": self.model.timeline is not None}
        return how | {"bytes": found.to_dict(), "total_bytes": found.total}

    def _fullest(self, share: float, sharding: Sharding) -> Held:
        gradients, exchange = self.model.gradients, self._exchange(sharding)
        timeline = self.model.timeline or formulas.guessed(self.sizes, self.own, gradients)
        # Where the step was not gone through, its moments are not told apart either.
        most = 0 if self.model.timeline else max(exchange.values(), default=0)
        step = timeline.peak(share, lambda place: most or exchange.get(place[0], 0))
        if self.config.gradient_accumulation > 1:
            step = replace(step, gradients=gradients)
        moving = Held(self._moving(share), gradients, exchange.get(_MOVING, 0))
        return max(step, moving, key=lambda held: held.weighed(share))

    def _moving(self, share: float) -> int:
        """What the optimizer makes of a weight held in bfloat16 while it moves it: its value and gradient, float32."""
        if self.config.latents == "float32":
            return 0
        return 2 * FLOAT * math.ceil(share * max((count for _, count in self.model.trained), default=0))

    def _exchange(self, sharding: Sharding) -> dict[str, int]:
        """Part of a step -> bytes that are there because others are: buckets of gradients, or weights made whole."""
        places = [BEFORE[0], "forward", BETWEEN[0], "backward", AFTER[0]]
        if self.processes == 1:
            return {}
        if sharding == "ddp":
            return dict.fromkeys([*places, _MOVING], self.model.gradients)
        beside, *layers = self.model.units
        largest = max(layers, key=lambda unit: unit.weights, default=beside)
        # The gradients of a layer are whole until they are summed up over all processes, into parts.
        back = _WHOLE_LAYERS * (largest.weights - largest.once) + 2 * largest.gradients
        more = {"forward": _WHOLE_LAYERS * largest.weights, "backward": back}
        return {place: beside.weights + more.get(place, 0) for place in places}

    @property
    def _kernels(self) -> int:
        if self.config.precision == "float32" or self.accelerated:
            return 0
        experts = sum(layout.experts for layout in self.sizes.plan.layouts)
        visits = self.config.steps * self.config.gradient_accumulation * experts
        return _KERNEL * min(_KERNELS, _SHAPES * visits)


def states(trained: Iterable[tuple[int, int]], config: Train) -> int:
    """Bytes of the optimizer's states of tensors that train, (bytes of a number, numbers) each."""
    large = formulas.state_size(config)
    return math.ceil(sum(count * (large if count >= _LEAST_8BIT else formulas.STATES) for _, count in trained))
