"""What a teacher says of a batch, and how far a student is from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Words = tuple[Tensor, Tensor, Tensor]
"""Of the likeliest words of each row: log-probabilities [rows, k], their numbers [rows, k], and the log of what is left
for all others together [rows]."""


@dataclass(frozen=True)
class Lesson:
    """Of the n labelled positions of a batch, in order, the logits [n, vocabulary] or only the likeliest `words`; and
    the states there after each decoder layer, [n, width]."""

    logits: Tensor | None
    words: Words | None
    states: tuple[Tensor, ...] = ()


def summed_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the rows of KL(teacher || student) in nats, in float32, of logits [rows, vocabulary] / temperature."""
    log_student, log_teacher = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


def likeliest(logits: Tensor, k: int, temperature: float) -> Words:
    """The `k` likeliest words (all, where there are fewer) at `temperature`; ties go to the lower number."""
    log_probs = (logits.float() / temperature).log_softmax(-1)
    best, words = log_probs.sort(dim=-1, descending=True, stable=True)
    return best[:, :k].contiguous(), words[:, :k].int(), best[:, k:].logsumexp(-1)


def summed_divergence_of_words(student: Tensor, words: Words, temperature: float = 1.0) -> Tensor:
    """`summed_divergence` with all words but the likeliest taken as one."""
    known, numbers, rest = words
    log_student = (student.float() / temperature).log_softmax(-1)
    numbers = numbers.long()
    said = log_student.gather(-1, numbers)
    summed = (known.exp() * (known - said)).sum()
    # Where nothing is left there is nothing to learn, and a logarithm of 0 has no gradient.
    left = rest.exp() > 0
    others = log_student[left].scatter(-1, numbers[left], -torch.inf).logsumexp(-1)
    return summed + (rest[left].exp() * (rest[left] - others)).sum()


def state_distances(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Of each position the mean over layers of |student - teacher|^2 / |teacher|^2: 1 is as far as nothing at all.

    After TinyBERT (arXiv 1909.10351), which compares widths by a learned map; here they are the same. Each position has
    a measure of its own, so what a batch is split into makes no difference.
    """
    errors = [
        (mine.float() - theirs.float()).square().sum(-1) / theirs.float().square().sum(-1).clamp_min(1e-12)
        for mine, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean(0)
