"""Bytes that a process sends in a training step, by the ring algorithm (each sends what the next one lacks)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mote_quant.estimate.imagined import Unit


@dataclass(frozen=True)
class Step:
    """What is exchanged: `beside` the layers, `layers`, and how many `micro_batches` make a step.

    `kept` bytes of gradients (routers) are of weights that FSDP2 does not shard.
    """

    beside: Unit
    layers: Sequence[Unit]
    micro_batches: int = 1
    kept: int = 0

    @property
    def gradients(self) -> int:
        """Bytes of everything that trains."""
        return self.beside.gradients + sum(layer.gradients for layer in self.layers)


def passed_on(size: float, processes: int) -> float:
    """Of an all-gather of `size` bytes in all, or a reduce-scatter of as many on each: what a process sends."""
    return size * (processes - 1) / processes


def ddp(step: Step, processes: int) -> float:
    """Gradients of what trains, summed up everywhere, once a step: a reduce-scatter and an all-gather."""
    return 2 * passed_on(step.gradients, processes)


def gathered(step: Step) -> int:
    """Bytes that FSDP2 makes whole in a step: layers for forward and again for backward, all else once."""
    layers = sum(2 * layer.weights - layer.once for layer in step.layers)
    return step.micro_batches * (step.beside.weights + layers - 2 * step.kept)


def reduced(step: Step) -> int:
    """Bytes of gradients that FSDP2 sums up into parts in a step."""
    return step.micro_batches * (step.gradients - step.kept)


def fsdp2(step: Step, processes: int) -> float:
    """All-gathers, reduce-scatters, and the few gradients of weights that are whole everywhere."""
    return passed_on(gathered(step) + reduced(step), processes) + 2 * passed_on(step.kept, processes)
