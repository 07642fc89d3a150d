"""Knowledge distillation: the student learns the teacher's whole distribution (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mote_quant.hf.lesson import Lesson, state_distances, summed_divergence, summed_divergence_of_words
from mote_quant.hf.states import at_labels, labelled, watched
from mote_quant.ranks import gathered

_WEIGHT = "router_aux_loss_coef"


class Teacher(Protocol):
    """Whoever knows what a batch should lead to."""

    def to(self, device: torch.device) -> None:
        """Go where the student is."""

    def teach(self, inputs: Mapping[str, Tensor]) -> Lesson:
        """What is said of a batch with `labels`."""
        ...


class LiveTeacher:
    """A model in eval mode that needs no gradients; with `states` it also shows those after each decoder layer."""

    def __init__(self, model: nn.Module, states: bool = False) -> None:
        self._model = model
        self._states = states

    def to(self, device: torch.device) -> None:
        """Move the model to where the student is."""
        self._model.to(device)

    @torch.no_grad()
    def teach(self, inputs: Mapping[str, Tensor]) -> Lesson:
        """A forward of the batch."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        with _states_of(self._model, self._states) as states:
            logits = cast(Any, self._model)(**given, use_cache=False).logits
        return Lesson(logits[:, :-1][labelled(inputs)], None, at_labels(states, inputs))


def _states_of(model: nn.Module, wanted: bool) -> AbstractContextManager[list[Tensor]]:
    return watched(model) if wanted else nullcontext([])


class Distillation:
    """`(1 - weight) * task loss + weight * T^2 * KL(teacher || student)`, and `hidden` times the distance of the states
    after each layer: all of them means over the positions that have a label, so that micro-batches add up.

    T^2 keeps the gradient's size whatever the temperature.
    """

    def __init__(self, teacher: Teacher, weight: float, temperature: float, hidden: float = 0.0) -> None:
        self._teacher = teacher
        self._weight = weight
        self._temperature = temperature
        self._hidden = hidden
        self._sum, self._positions = 0.0, 0

    def to(self, device: torch.device) -> None:
        """Move the teacher to where the student is."""
        self._teacher.to(device)

    def watching(self, student: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Inside, a forward of the student leaves the states that `loss` wants in the list."""
        return _states_of(student, bool(self._hidden))

    def loss(
        self,
        task: Tensor,
        logits: Tensor,
        inputs: Mapping[str, Tensor],
        items: Tensor | int | None,
        states: list[Tensor] | None = None,
        balance: Tensor | float = 0.0,
    ) -> Tensor:
        """The loss of a batch with `labels` whose task loss is `task`; `logits` [batch, length, vocabulary].

        `items` is what the sum over the batch is divided by, as in `task`; None for the mean over its positions.
        `states` are the student's, as `watching` has them. `balance` is the part of `task` that is of routers: it
        counts whole.
        """
        lesson = self._teacher.teach(inputs)
        learned = logits[:, :-1][labelled(inputs)]
        summed, positions = self._divergence(learned, lesson), len(learned)
        self._sum, self._positions = self._sum + float(summed.detach()), self._positions + positions
        divisor = max(positions, 1) if items is None else torch.as_tensor(items, device=summed.device).clamp(min=1)
        # A mean over no labels is 0 / 0.
        task = task if positions else task.nan_to_num(0.0)
        loss = (1 - self._weight) * task + self._weight * (balance + self._temperature**2 * summed / divisor)
        if not self._hidden:
            return loss
        distances = state_distances(at_labels(states or [], inputs), lesson.states)
        return loss + self._hidden * distances.sum() / divisor

    def _divergence(self, logits: Tensor, lesson: Lesson) -> Tensor:
        if lesson.words is not None:
            return summed_divergence_of_words(logits, lesson.words, self._temperature)
        return summed_divergence(logits, cast(Tensor, lesson.logits), self._temperature)

    def mean(self) -> float:
        """KL(teacher || student) at the temperature, in nats a position, of all batches since this was last asked.

        Of those of all processes; all of them have to ask.
        """
        seen = gathered((self._sum, self._positions))
        mean = sum(found for found, _ in seen) / max(sum(positions for _, positions in seen), 1)
        self._sum, self._positions = 0.0, 0
        return mean


def added_balance(model: nn.Module, outputs: Any) -> Tensor | float:
    """What a forward of `model` has added to its loss for its own routers; 0 where it adds nothing."""
    found = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    config = cast(Any, model).config
    places = [vars(part) for part in (model, config, config.get_text_config())]
    weight = next((place[_WEIGHT] for place in places if _WEIGHT in place), 0.0)
    return 0.0 if found is None else cast("Tensor | float", weight * found)
