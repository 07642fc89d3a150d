"""What groups of weights lose by being rounded: the measures that `clip: search` compares ranges by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mote_quant.formats.groups import split_groups

Loss = Callable[[Tensor], Tensor]
"""Errors of weights [out, groups, width] -> what each group loses by them [out, groups]."""


def squared_loss(group_size: int, importance: Tensor | None = None) -> Loss:
    """The sum of squared errors, each times the importance of its input column ([in], at least 0), if given.

    Squared: of the powers 1, 2, 2.4, 3 and 4, on tinystories-656k in groups of 64 and in whole rows, 2 left the lowest
    perplexity at 3 and 2 bits (int3: 48.8, against 50.4 for 2.4 and 56.1 for 1); at 4 bits 2 to 4 do not differ.
    """
    if importance is None:
        return lambda errors: errors.square().sum(-1)
    weights = split_groups(importance.unsqueeze(0), group_size)
    return lambda errors: (errors.square() * weights).sum(-1)


def output_loss(group_size: int, inputs: Tensor) -> Loss:
    """The squared error of each group's part of the outputs, summed over inputs [rows, in] (the clip step of AWQ)."""
    # R of a QR factorization gives the same squares as the inputs and has no more rows than a group has columns.
    roots = torch.linalg.qr(split_groups(inputs, group_size).transpose(0, 1), mode="r").R
    return lambda errors: (errors.transpose(0, 1) @ roots.mT).square().sum(-1).T
