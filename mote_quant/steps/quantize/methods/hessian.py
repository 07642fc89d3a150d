"""What calibration gathers for one linear layer: the Hessian of its squared output error, H = 2/n sum x x^T."""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.errors import CalibrationError


class HessianSum:
    """A running sum over batches of inputs; memory is one float32 [in, in], whatever the number of tokens."""

    def __init__(self, in_features: int, *, name: str = "weight", device: torch.device | str | None = None) -> None:
        """`name` is the tensor the inputs go into, for errors."""
        self.name = name
        self.tokens = 0
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Inputs [..., in]; all leading axes count tokens. CalibrationError for another width or non-finite values."""
        if inputs.dim() < 1 or inputs.shape[-1] != len(self._sum):
            expected = f"[tokens, {len(self._sum)}]"
            raise CalibrationError(f"{self.name}: calibration inputs must be {expected}, found {list(inputs.shape)}")
        rows = inputs.detach().reshape(-1, len(self._sum)).to(self._sum)
        if not bool(rows.isfinite().all()):
            raise CalibrationError(f"{self.name}: a calibration input holds NaN or infinite values")
        self._sum.addmm_(rows.T, rows)
        self.tokens += len(rows)

    def value(self) -> Tensor:
        """H as float32 [in, in]; CalibrationError if no token was seen."""
        if self.tokens == 0:
            raise CalibrationError(f"{self.name} saw no calibration token; use more samples, or fall back to rtn")
        return self._sum * (2.0 / self.tokens)
