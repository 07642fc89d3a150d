"""The norm of the gradient, role by role."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def norms_by_role(parameters: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, float]:
    """The Euclidean norm over all gradients of each role's parameters; roles without any are left out.

    To be called by all processes where they share parameters.
    """
    found = {role: [p.grad for p in named if p.grad is not None] for role, named in parameters.items()}
    return {role: _norm(gradients) for role, gradients in found.items() if gradients}


def _norm(gradients: list[Tensor]) -> float:
    norms = torch._foreach_norm([gradient.detach() for gradient in gradients])
    whole = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    return float(torch.stack([norm.float().to(whole[0].device) for norm in whole]).norm())


def before_clipping(norms: Mapping[str, float], total: float | None) -> dict[str, float]:
    """`norms`, taken after clipping, as they were before it: together they were `total` (None: nobody clipped)."""
    now = math.sqrt(sum(norm * norm for norm in norms.values()))
    factor = total / now if total is not None and now > 0 else 1.0
    return {role: float(f"{norm * factor:.6g}") for role, norm in norms.items()}
