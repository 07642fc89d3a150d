"""What calibration gathers for one linear layer: the Hessian of its squared output error, H = 2/n sum x x^T."""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError

BLOCK = 512
"""Columns below which a product is not split further: smaller blocks save less than they cost."""
CHUNK = 2**23
"""Input values cast to float32 at a time (32 MiB)."""


class HessianSum:
    """A running mean over batches of inputs; memory is one float32 [in, in], whatever the number of tokens."""

    def __init__(self, in_features: int, *, name: str = "weight", device: torch.device | str | None = None) -> None:
        """`name` is the tensor the inputs go into, for errors."""
        self.name = name
        self.tokens = 0
        # Only blocks on and above the diagonal are kept up to date; `value` mirrors the others.
        self._mean = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Inputs [..., in]; all leading axes count tokens. CalibrationError for another width or non-finite values."""
        columns = len(self._mean)
        if inputs.dim() < 1 or inputs.shape[-1] != columns:
            expected = f"[tokens, {columns}]"
            raise CalibrationError(f"{self.name}: calibration inputs must be {expected}, found {list(inputs.shape)}")
        rows = inputs.detach().reshape(-1, columns)
        # A sum of finite values may pass the largest float32; their squares would then as well.
        if not bool(rows.sum(dtype=torch.float32).isfinite()):
            raise CalibrationError(
                f"{self.name}: a calibration input holds NaN or infinite values, or far too large ones"
            )
        for part in torch.split(rows, max(CHUNK // columns, 1)) if len(rows) else ():
            self._add(part.to(self._mean))

    def value(self) -> Tensor:
        """H as float32 [in, in]: the sum's own memory, which the next `add` overwrites. CalibrationError if no token
        was seen."""
        if self.tokens == 0:
            raise CalibrationError(f"{self.name} saw no calibration token; use more samples, or fall back to rtn")
        _mirror(self._mean)
        return self._mean

    def _add(self, rows: Tensor) -> None:
        before, self.tokens = self.tokens, self.tokens + len(rows)
        _add_products(self._mean, rows, keep=before / self.tokens, weight=2.0 / self.tokens)


def _add_products(total: Tensor, rows: Tensor, keep: float, weight: float) -> None:
    """total = keep * total + weight * rows^T rows, on and above the diagonal: about half the work of the square."""
    if len(total) <= BLOCK:
        total.addmm_(rows.T, rows, beta=keep, alpha=weight)
        return
    half = len(total) // 2
    left, right = rows[:, :half], rows[:, half:]
    _add_products(total[:half, :half], left, keep, weight)
    total[:half, half:].addmm_(left.T, right, beta=keep, alpha=weight)
    _add_products(total[half:, half:], right, keep, weight)


def _mirror(total: Tensor) -> None:
    """Copies what is above the diagonal to below it."""
    for start in range(0, len(total), BLOCK):
        rows = slice(start, start + BLOCK)
        total[start + BLOCK :, rows] = total[rows, start + BLOCK :].T
        total[rows, rows] = total[rows, rows].triu() + total[rows, rows].triu(1).T
