"""A training of a real shape in numbers: bytes of its parts from `mote_quant.estimate`, operations from its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from eval.scaling.cluster import Cluster
from eval.scaling.simulate import Timing
from eval.scaling.traffic import Step
from mote_quant.estimate import Footprint, Training
from mote_quant.estimate.sizes import Sizes
from mote_quant.parallel.sharings import Sharding
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load

BATCH, LENGTH, SAMPLES = 2, 2048, 128
"""Samples of a device in a micro-batch, tokens of each, and samples of all devices in a step."""
_MOVED = {"float32": 28, "bfloat16": 22}
"""Bytes of HBM that the optimizer reads and writes for a number it moves, by its type: weight, gradient and states."""
_ROUNDED = 4 + 1 + 3 * (1 + 2 + 2)
"""The same for a latent weight in a micro-batch: read once, codes written; in forward, recomputation and backward codes
read, values written and read."""


@dataclass(frozen=True)
class Workload:
    """`model` up-cycled to four ternary experts a layer; experts and routers train, the rest is frozen."""

    model: str
    latents: str = "float32"
    optimizer: str = "adamw_torch"

    @cached_property
    def alone(self) -> Training:
        """One device and its micro-batch."""
        return _training(self.model, self.latents, self.optimizer)

    def footprint(self, processes: int, sharding: Sharding) -> Footprint:
        """What each device holds, with the same micro-batch whatever their number."""
        return self.alone.among(processes).footprint(sharding)

    def step(self, gpus: int, samples: int = SAMPLES) -> Step:
        """What is exchanged where each device takes `samples / gpus` samples, BATCH at a time."""
        beside, *layers = self.alone.model.units
        kept = 4 * self.alone.sizes.of_role("router")
        return Step(beside, layers, max(1, samples // (gpus * BATCH)), kept)

    @property
    def forward(self) -> float:
        """Operations of a layer for a token; causal attention looks at half of the others."""
        sizes = self.alone.sizes
        layers = len(sizes.layers)
        return 2 * (sizes.active - self.head // 2) / layers + 2 * LENGTH * sizes.hidden

    @property
    def head(self) -> int:
        """Operations of the head for a token."""
        return 2 * self.alone.sizes.hidden * self.alone.sizes.vocabulary

    @property
    def learned(self) -> float:
        """Operations for the gradients of weights of a layer, a token: only experts have any."""
        layout = self.alone.sizes.plan.layouts[0]
        return 2 * 3 * layout.hidden_size * layout.intermediate_size * layout.top_k

    def timing(self, cluster: Cluster, sharding: Sharding) -> Timing:
        """Seconds of the parts of a micro-batch; backward computes forward again (gradient checkpointing)."""
        tokens, sizes = BATCH * LENGTH, self.alone.sizes
        rounding = sizes.of_role("routed") / len(sizes.layers) * _ROUNDED / cluster.hbm
        forward = tokens * self.forward / cluster.speed
        moved = sum(count for _, count in self.alone.model.trained) * _MOVED[self.latents] / cluster.hbm
        return Timing(
            forward=forward + rounding / 4,
            backward=2 * forward + tokens * self.learned / cluster.speed + rounding * 3 / 4,
            beside=2 * tokens * self.head / cluster.speed,
            update=moved / cluster.gpus if sharding == "fsdp2" else moved,
            bandwidth=cluster.bandwidth,
        )


@cache
def _training(model: str, latents: str, optimizer: str) -> Training:
    train: dict[str, Any] = {"what": ["routed", "router"], "data": "train.jsonl", "steps": 1000, "batch_size": BATCH}
    train |= {"max_length": LENGTH, "precision": "bfloat16", "latents": latents, "optimizer": optimizer}
    train |= {"gradient_checkpointing": True, "gradient_accumulation": 2}
    pipeline = [{"upcycle": {"experts": 4}}, {"train": train}, "quantize"]
    recipe = load({"name": "scaling", "bits": {"routed": "ternary", "router": "float32"}, "pipeline": pipeline})
    skeleton = skeleton_for(model)
    sizes = Sizes(plan_on(recipe, skeleton), skeleton)
    config: Any = recipe.pipeline[1].config
    return Training(sizes, config, accelerated=True)
