"""The teacher of a train step: a model that runs beside the student, or what it said before, read from disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.data.feed import Feed
from mote_quant.fingerprint import weights_hash
from mote_quant.hf.cached_teacher import CachedTeacher, Kept, Missing, ask, missing
from mote_quant.hf.distillation import Distillation, LiveTeacher, Teacher
from mote_quant.hf.lesson_store import LessonStore
from mote_quant.hf.teacher import check_same_states, known_hash, open_teacher, remember_hash
from mote_quant.memory.units import human_bytes
from mote_quant.progress import NOTICE, Progress
from mote_quant.ranks import by_main, ranks, together
from mote_quant.recipe.schema import Distill, Train

_log = logging.getLogger(__name__)


def distillation_for(config: Train, model: nn.Module, feed: Feed, progress: Progress) -> Distillation | None:
    """What `config.distill` asks for, to teach `model` on `feed`; with a cache that is whole no teacher is loaded.

    Raises ModelError for a teacher that cannot teach, ArtifactError for a damaged cache, SaveError.
    """
    wanted = config.distill
    if wanted is None:
        return None
    if wanted.cache is None:
        teacher: Teacher = LiveTeacher(_opened(wanted, model, feed), states=bool(wanted.hidden))
    else:
        teacher = _cached(wanted, wanted.cache, config, model, feed, progress)
    return Distillation(teacher, wanted.weight, wanted.temperature, wanted.hidden)


def _opened(wanted: Distill, model: nn.Module, feed: Feed) -> nn.Module:
    teacher = open_teacher(wanted.teacher, model)
    if wanted.hidden:
        check_same_states(wanted.teacher, teacher, model)
    feed.fitted([model, teacher])
    return teacher


def _cached(
    wanted: Distill, cache: str, config: Train, model: nn.Module, feed: Feed, progress: Progress
) -> CachedTeacher:
    kept = Kept(wanted.top_k, wanted.temperature, bool(wanted.hidden))
    teacher: nn.Module | None = None
    name = known_hash(wanted.teacher, cache)
    if name is None:
        teacher = _opened(wanted, model, feed)
        name = weights_hash(teacher)
        by_main(partial(remember_hash, wanted.teacher, cache, name))
    identity = _identity(name, feed, kept)
    by_main(lambda: LessonStore(Path(cache), identity).tidy())
    store = LessonStore(Path(cache), identity)
    lacking = by_main(lambda: missing(store, _batches(config, feed)))
    if lacking.batches:
        teacher = teacher or _opened(wanted, model, feed)
        _fill(store, kept, teacher, lacking, config, feed, progress)
    else:
        _log.log(NOTICE, "all that %s has to say lies in %s: it is not loaded", wanted.teacher, store.folder)
    return CachedTeacher(store, kept)


def _identity(teacher: str, feed: Feed, kept: Kept) -> dict[str, Any]:
    # Logits are those of any temperature; the likeliest words' shares are of one.
    words = {} if kept.top_k is None else {"top_k": kept.top_k, "temperature": kept.temperature}
    data = [source.fingerprint for source, _ in feed.parts]
    return {"version": 2, "teacher": teacher, "data": data, "states": kept.states, **words}


def _fill(
    store: LessonStore, kept: Kept, teacher: nn.Module, lacking: Missing, config: Train, feed: Feed, progress: Progress
) -> None:
    wanted = predicted_bytes(kept, teacher, lacking)
    each = wanted / max(lacking.positions, 1)
    _log.log(
        NOTICE,
        "the teacher is asked about %d rows (%d tokens): %.0f bytes a token, %s in %s",
        lacking.rows,
        lacking.positions,
        each,
        human_bytes(wanted),
        store.folder,
    )
    by_main(lambda: store.require_room(wanted))
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    progress.start("asking the teacher", _count(config) * ranks().world)
    live = LiveTeacher(teacher, kept.states)
    together(lambda: ask(store, kept, live, _batches(config, feed), device, progress.advance))
    store.refresh()


def predicted_bytes(kept: Kept, teacher: nn.Module, lacking: Missing) -> int:
    """What the lessons that are missing will take, headers aside."""
    text = cast(Any, teacher).config.get_text_config()
    itemsize = next(teacher.parameters()).dtype.itemsize
    sizes = (text.vocab_size, text.num_hidden_layers, text.hidden_size)
    return kept.bytes_of(lacking.labels, *sizes, itemsize)


def _steps(config: Train) -> int:
    return max(config.steps, config.search.steps if config.search else 0)


def _count(config: Train) -> int:
    return _steps(config) * config.gradient_accumulation


def _batches(config: Train, feed: Feed) -> Iterator[dict[str, Tensor]]:
    """All that the training will see, in its order, in the batches of a process."""
    world = ranks().world
    count, size = _count(config) * world, config.batch_size // world
    schedule = feed.schedule(_steps(config))
    for start in range(0, count * size, size):
        yield feed.collate([schedule[index] for index in range(start, start + size)])
