"""One training step on two queues: a GPU computes, and meanwhile it exchanges. Events, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from eval.scaling.traffic import Step, passed_on


@dataclass(frozen=True)
class Timing:
    """Seconds of one layer's `forward` and `backward` (that which is computed again included), of what is `beside` the
    layers, of the optimizer's `update`; `bandwidth` of a ring in bytes a second, `latency` of an exchange.
    """

    forward: float
    backward: float
    beside: float
    update: float
    bandwidth: float
    latency: float = 0.0


@dataclass
class Queue:
    """Tasks one after the other; `busy` seconds in all."""

    free: float = 0.0
    busy: float = 0.0

    def run(self, seconds: float, after: float = 0.0) -> float:
        """Start when there is room and `after` is over; returns when it ends."""
        self.free = max(self.free, after) + seconds
        self.busy += seconds
        return self.free


@dataclass
class _Run:
    step: Step
    timing: Timing
    processes: int
    overlap: bool
    compute: Queue = field(default_factory=Queue)
    wire: Queue = field(default_factory=Queue)

    def exchange(self, size: float, after: float) -> float:
        """Seconds at which `size` bytes, whole, are through; without `overlap` nothing is computed meanwhile."""
        seconds = passed_on(size, self.processes) / self.timing.bandwidth + self.timing.latency
        done = self.wire.run(seconds, after if self.overlap else max(after, self.compute.free))
        if not self.overlap:
            self.compute.free = max(self.compute.free, done)
        return done


def step_seconds(step: Step, timing: Timing, processes: int, sharding: str, overlap: bool = True) -> float:
    """How long a step takes; without `overlap` every exchange is waited for."""
    run = _Run(step, timing, processes, overlap)
    (_fsdp2 if sharding == "fsdp2" else _ddp)(run)
    run.compute.run(timing.update, run.wire.free)
    return run.compute.free


def _ddp(run: _Run) -> None:
    timing, step = run.timing, run.step
    for micro in range(step.micro_batches):
        for _ in step.layers:
            run.compute.run(timing.forward)
        run.compute.run(timing.beside)
        last = micro == step.micro_batches - 1
        for layer in reversed(step.layers):
            done = run.compute.run(timing.backward)
            if last and run.processes > 1:
                run.exchange(2 * layer.gradients, done)


def _fsdp2(run: _Run) -> None:
    timing, step = run.timing, run.step
    for _ in range(step.micro_batches):
        run.compute.free = max(run.compute.free, run.exchange(step.beside.weights, run.compute.free))
        _pass(run, [layer.weights for layer in step.layers], timing.forward, [])
        run.compute.run(timing.beside)
        back = [*reversed(step.layers)]
        weights, gradients = [layer.weights - layer.once for layer in back], [layer.gradients for layer in back]
        _pass(run, weights, timing.backward, gradients)


def _pass(run: _Run, weights: Sequence[int], seconds: float, gradients: Sequence[int]) -> None:
    """Through the layers: the next one is gathered while one is at work, its gradients summed up behind it."""
    ready = run.exchange(weights[0], run.compute.free) if weights else 0.0
    for index, following in enumerate(_next(weights)):
        start = max(ready, run.compute.free)
        ready = run.exchange(following, start) if following is not None else ready
        done = run.compute.run(seconds, start)
        if gradients:
            run.exchange(gradients[index], done)


def _next(sizes: Sequence[int]) -> Iterator[int | None]:
    yield from sizes[1:]
    if sizes:
        yield None
