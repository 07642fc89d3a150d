"""Two ways to compute the same numbers: how far rounding alone may set them apart."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the norm of what is compared: sums in another order, and an activation that now and then rounds the other way."""


def assert_same_to_rounding(found: Tensor, wanted: Tensor) -> None:
    """Same shape, type and numbers, up to rounding in that type."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    apart = (found.double() - wanted.double()).norm()
    assert apart <= RELATIVE[found.dtype] * wanted.double().norm(), f"{apart / wanted.double().norm():.2e} apart"
