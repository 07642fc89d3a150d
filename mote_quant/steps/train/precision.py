"""Training wants float32 weights, whatever type the model is stored in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def float32_weights(model: nn.Module, names: set[str] | None = None) -> Iterator[None]:
    """Inside, the parameters `names` (None: all) are float32; afterwards each has its own type again.

    Weights that did not change come back bit for bit: 16 bits to 32 and back is exact.
    """
    before = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.dtype in (torch.bfloat16, torch.float16) and (names is None or name in names)
    }
    _cast(model, dict.fromkeys(before, torch.float32))
    try:
        yield
    finally:
        _cast(model, before)


def _cast(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])
