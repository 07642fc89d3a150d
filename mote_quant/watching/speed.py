"""How fast a training goes: tokens a second of all processes, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mote_quant.moe.pull import in_backward
from mote_quant.ranks import ranks


class Speedometer:
    """Counts the tokens that go into a model in training. Processes are taken to see as many as this one."""

    def __init__(self, model: nn.Module, clock: Callable[[], float] = time.monotonic) -> None:
        self._entrance = cast(Any, model).get_input_embeddings()
        self._clock = clock
        self._handle: RemovableHandle | None = None
        self._tokens, self._since, self._began, self._first = 0, 0.0, 0.0, 0

    def start(self, step: int) -> None:
        """Count from now on, after `step` steps."""
        self._handle = self._entrance.register_forward_hook(cast(Any, torch.compiler).disable(self._count))
        self._began = self._since = self._clock()
        self._tokens, self._first = 0, step

    def stop(self) -> None:
        """Leave the model as it was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def take(self, step: int, steps: int) -> dict[str, float]:
        """Tokens a second since this was last called, and the seconds left after `step` of `steps` steps."""
        now = self._clock()
        rate = self._tokens * ranks().world / max(now - self._since, 1e-9)
        left = (now - self._began) / max(step - self._first, 1) * (steps - step)
        self._tokens, self._since = 0, now
        return {"tokens_per_second": round(rate, 1), "seconds_left": round(left, 1)}

    def _count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training and not in_backward():
            self._tokens += output.shape[:-1].numel()
