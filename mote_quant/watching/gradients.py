"""The norm of the gradient, role by role."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn

from mote_quant.parallel.sharding import norms


def norms_by_role(parameters: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, float]:
    """The Euclidean norm over all gradients of each role's parameters; roles without any are left out.

    To be called by all processes where they share parameters.
    """
    found = {role: [p.grad for p in named if p.grad is not None] for role, named in parameters.items()}
    found = {role: gradients for role, gradients in found.items() if gradients}
    return dict(zip(found, norms(list(found.values())).tolist(), strict=True))


def before_clipping(norms: Mapping[str, float], total: float | None) -> dict[str, float]:
    """`norms`, taken after clipping, as they were before it: together they were `total` (None: nobody clipped)."""
    now = math.sqrt(sum(norm * norm for norm in norms.values()))
    factor = total / now if total is not None and now > 0 else 1.0
    return {role: float(f"{norm * factor:.6g}") for role, norm in norms.items()}
