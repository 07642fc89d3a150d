"""A teacher that is asked once: its lessons are kept on disk, and read from there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mote_quant.errors import ArtifactError
from mote_quant.hf.distillation import Teacher
from mote_quant.hf.lesson import Lesson, likeliest
from mote_quant.hf.lesson_store import LessonStore, Row, row_keys
from mote_quant.hf.states import attended, labelled
from mote_quant.ranks import ranks


@dataclass(frozen=True)
class Kept:
    """How much of a lesson is kept: the `top_k` likeliest words at `temperature` (None: all logits), states or not."""

    top_k: int | None
    temperature: float
    states: bool

    def row(self, logits: Tensor, states: tuple[Tensor, ...]) -> Row:
        """A lesson of one row, as it is stored."""
        kept = {"states": torch.stack(states)} if self.states else {}
        if self.top_k is None:
            return {"logits": logits, **kept}
        probabilities, words, rest = likeliest(logits, self.top_k, self.temperature)
        return {"probabilities": probabilities, "words": words, "rest": rest, **kept}

    def bytes_of(self, labels: int, vocabulary: int, layers: int, width: int, itemsize: int) -> int:
        """What the lessons of so many labelled positions take on disk."""
        words = vocabulary * itemsize if self.top_k is None else min(self.top_k, vocabulary) * 8 + 4
        return labels * (words + (layers * width * itemsize if self.states else 0))


class CachedTeacher:
    """Reads lessons from `store`; there is no model."""

    def __init__(self, store: LessonStore, kept: Kept) -> None:
        self._store = store
        self._kept = kept

    def to(self, device: torch.device) -> None:
        """Lessons go where their batch is."""

    def teach(self, inputs: Mapping[str, Tensor]) -> Lesson:
        """The lessons of the batch's rows. ArtifactError where one is missing or damaged."""
        device = inputs["input_ids"].device
        rows = [self._store.read(key) for key in row_keys(inputs)]
        joined = {name: torch.cat([row[name] for row in rows], 1 if name == "states" else 0) for name in rows[0]}
        self._fits(joined, inputs)
        told = {name: tensor.to(device) for name, tensor in joined.items()}
        states = tuple(told["states"]) if self._kept.states else ()
        if self._kept.top_k is None:
            return Lesson(told["logits"], None, states)
        return Lesson(None, (told["probabilities"], told["words"], told["rest"]), states)

    def _fits(self, joined: Row, inputs: Mapping[str, Tensor]) -> None:
        told = joined["logits" if self._kept.top_k is None else "words"]
        if len(told) != int(labelled(inputs).sum()):
            raise ArtifactError(f"{self._store.folder} has lessons of other positions; delete it to make it again")


@dataclass(frozen=True)
class Missing:
    """Batches with rows that have no lesson yet: how many rows, labelled positions and positions that is."""

    batches: list[int]
    rows: int
    labels: int
    positions: int


def missing(store: LessonStore, batches: Iterable[Mapping[str, Tensor]]) -> Missing:
    """What is to be asked of the teacher before a training on `batches`."""
    seen: set[str] = set()
    where: list[int] = []
    labels = positions = 0
    for index, batch in enumerate(batches):
        new = [*_new(store, batch, seen)]
        if new:
            where.append(index)
            labels += int(labelled(batch)[new].sum())
            positions += int(attended(batch)[new].sum())
    return Missing(where, len(seen), labels, positions)


def _new(store: LessonStore, batch: Mapping[str, Tensor], seen: set[str]) -> dict[int, str]:
    """The rows of `batch` that neither `store` nor `seen` has, and their keys; they are then seen."""
    rows = {}
    for index, key in enumerate(row_keys(batch)):
        if key not in store and key not in seen:
            seen.add(key)
            rows[index] = key
    return rows


def ask(
    store: LessonStore,
    kept: Kept,
    teacher: Teacher,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    told: Callable[[int], None],
) -> None:
    """Have `teacher` teach `batches`, and keep what it says of rows that are new. Raises SaveError.

    Each process asks for a share of the batches.
    """
    here, seen = ranks(), set[str]()
    teacher.to(device)
    for index, batch in enumerate(batches):
        new = _new(store, batch, seen) if index % here.world == here.rank else {}
        if new:
            lesson = teacher.teach({name: tensor.to(device) for name, tensor in batch.items()})
            _keep(store, kept, lesson, batch, new)
        told(index + 1)
    store.flush()


def _keep(store: LessonStore, kept: Kept, lesson: Lesson, batch: Mapping[str, Tensor], new: Mapping[int, str]) -> None:
    labels = labelled(batch).sum(1).tolist()
    logits = torch.split(cast(Tensor, lesson.logits), labels)
    states = [torch.split(state, labels) for state in lesson.states]
    for row, key in new.items():
        store.add(key, kept.row(logits[row], tuple(state[row] for state in states)))
