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
from mote_quant.estimate.timeline import Held
from mote_quant.parallel.sharings import Sharding
from mote_quant.recipe.schema import Train

_STATES = 2 * FLOAT
"""Bytes that Adam keeps for a number that trains, whatever its type."""
_STATES_8BIT = 2 + 2 * FLOAT / 256
"""The same in 8 bits, with a scale for every 256."""
_LEAST_8BIT = 4096
"""Numbers of a tensor from which its states are held in 8 bits."""
_KERNEL, _KERNELS, _SHAPES = round(0.4 * 2**20), 1024, 7
"""Bytes of the code that oneDNN keeps for a product in bfloat16, how often it does at most, and for how many products
of an expert, whose numbers of tokens are never the same."""
_WHOLE_LAYERS = 2
"""Layers that FSDP2 holds whole at a time: one at work, one on its way."""


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
        held = self._fullest(share)
        return Footprint(
            weights=math.ceil(share * self.model.weights),
            optimizer=math.ceil(share * states(self.model.trained, self.config)),
            gradients=math.ceil(share * held.gradients),
            activations=held.activations,
            exchange=self._exchange(sharding),
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

    def _fullest(self, share: float) -> Held:
        gradients = self.model.gradients
        step = (self.model.timeline or formulas.guessed(self.sizes, self.own, gradients)).peak(share)
        if self.config.gradient_accumulation > 1:
            step = Held(step.activations, gradients)
        return max(step, Held(self._moving(share), gradients), key=lambda held: held.weighed(share))

    def _moving(self, share: float) -> int:
        """What the optimizer makes of a weight held in bfloat16 while it moves it: its value and gradient, float32."""
        if self.config.latents == "float32":
            return 0
        return 2 * FLOAT * math.ceil(share * max((count for _, count in self.model.trained), default=0))

    def _exchange(self, sharding: Sharding) -> int:
        if self.processes == 1:
            return 0
        if sharding == "ddp":
            return self.model.gradients
        beside, *layers = self.model.units
        largest = max(layers, key=lambda unit: unit.weights, default=beside)
        # The gradients of a layer are whole until they are summed up over all processes, into parts.
        return beside.weights + _WHOLE_LAYERS * largest.weights + 2 * largest.gradients

    @property
    def _kernels(self) -> int:
        if self.config.precision == "float32" or self.accelerated:
            return 0
        experts = sum(layout.experts for layout in self.sizes.plan.layouts)
        visits = self.config.steps * self.config.gradient_accumulation * experts
        return _KERNEL * min(_KERNELS, _SHAPES * visits)


def states(trained: Iterable[tuple[int, int]], config: Train) -> int:
    """Bytes of the optimizer's states of tensors that train, (bytes of a number, numbers) each."""
    short = config.optimizer != "adamw_torch"
    return math.ceil(sum(count * (_STATES_8BIT if short and count >= _LEAST_8BIT else _STATES) for _, count in trained))
