"""Knowledge distillation: the student learns the teacher's whole distribution (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.data.source import IGNORED


def summed_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the rows of KL(teacher || student) in nats, in float32, of logits [rows, vocabulary] / temperature."""
    log_student, log_teacher = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


class Distillation:
    """`(1 - weight) * task loss + weight * T^2 * KL(teacher || student)`, over the positions that have a label.

    `teacher` is in eval mode and needs no gradients. T^2 keeps the gradient's size whatever the temperature.
    """

    def __init__(self, teacher: nn.Module, weight: float, temperature: float) -> None:
        self._teacher = teacher
        self._weight = weight
        self._temperature = temperature
        self._sum, self._positions = 0.0, 0

    def to(self, device: torch.device) -> None:
        """Move the teacher to where the student is."""
        self._teacher.to(device)

    def loss(self, task: Tensor, logits: Tensor, inputs: Mapping[str, Tensor], items: Tensor | int | None) -> Tensor:
        """The loss of a batch with `labels` whose task loss is `task`; `logits` [batch, length, vocabulary].

        `items` is what the sum over the batch is divided by, as in `task`; None for the mean over its positions.
        """
        # As the labels of the task are: position i predicts token i + 1.
        labelled = inputs["labels"][:, 1:] != IGNORED
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            target = cast(Any, self._teacher)(**given, use_cache=False).logits[:, :-1][labelled]
        summed = summed_divergence(logits[:, :-1][labelled], target, self._temperature)
        positions = int(labelled.sum())
        self._sum, self._positions = self._sum + float(summed.detach()), self._positions + positions
        divergence = summed / (max(positions, 1) if items is None else items)
        return (1 - self._weight) * task + self._weight * self._temperature**2 * divergence

    def mean(self) -> float:
        """KL(teacher || student) at the temperature, in nats a position, of all batches since this was last asked."""
        mean = self._sum / max(self._positions, 1)
        self._sum, self._positions = 0.0, 0
        return mean
