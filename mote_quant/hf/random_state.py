"""Random state as data, and a training step that leaves the caller's random state as it found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def capture() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of torch (CPU and CUDA), numpy and random: as tensors, and as JSON-ready values."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": [version, list(internal), gauss], "numpy": [name, *rest]}


def restore(tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Back to what `capture` saw."""
    version, internal, gauss = values["python"]
    random.setstate((version, tuple(internal), gauss))
    name, *rest = values["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), *rest))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


@contextmanager
def isolated() -> Iterator[None]:
    """Whatever is drawn inside, the caller's random state is the same afterwards."""
    before = capture()
    try:
        yield
    finally:
        restore(*before)
