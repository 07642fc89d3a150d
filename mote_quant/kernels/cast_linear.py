"""A linear layer stored in another floating-point type than the model computes in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CastLinear(nn.Linear):
    """`y = x W^T + b` with W and b cast to the type of `x` on use: few bytes at rest, the model's own arithmetic."""

    @classmethod
    def of(cls, linear: nn.Linear) -> CastLinear:
        """Take over the parameters of `linear`, as they are."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of the input."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)
