"""What a train step is fed with: its data as the recipe names it, in the order and the shape that the recipe wants."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.data.arranging import Arrangement, bucketed, one_by_one, packed
from mote_quant.data.cursor import Cursor, InMemory
from mote_quant.data.mixing import Mixed, distinct, joined, untagged
from mote_quant.data.packing import Form, PackedRows, form_for
from mote_quant.data.reading import USUAL, Opener, reading_of
from mote_quant.data.schedule import Schedule
from mote_quant.data.source import Source, none_held_out, too_few
from mote_quant.data.streams import StreamCursor, Streamed
from mote_quant.data.windows import Windows
from mote_quant.errors import DataError
from mote_quant.recipe.schema import Train

_log = logging.getLogger(__name__)
_AHEAD = 4
"""As many steps' rows may be read ahead of the step that a checkpoint is of."""
_LOOKED_AT = 8
"""Samples whose tokens a model is tried with."""


@dataclass(frozen=True)
class Feed:
    """The data of a train step: `source` collates single samples, and has those of the validation split."""

    config: Train
    parts: list[tuple[Source, float]]
    source: Source
    seed: int
    form: Form | None = None

    def fitted(self, models: Sequence[nn.Module]) -> Feed:
        """With rows packed in a form in which all of `models` keep samples apart. DataError where there is none."""
        if not self.config.pack:
            return self
        room, autocast = self._room(), torch.bfloat16 if self.config.precision == "bfloat16" else None
        forms = {form_for(model, self._some_tokens(), room, autocast) for model in models}
        if len(forms) > 1:
            raise DataError("train.pack: the teacher keeps samples apart in another way than the model; leave pack out")
        return replace(self, form=forms.pop())

    def schedule(self, steps: int) -> Schedule:
        """The rows of so many steps."""
        each = self._each
        if self._in_order():
            return Schedule(self.source.train, steps * each, self.seed)
        return Windows(self._cursor(), self._arrangement(), steps * each, _AHEAD * each)

    def collate(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Model inputs of rows of the schedule."""
        if self._in_order():
            return self.source.collate(rows)
        if self.form is not None:
            return PackedRows(self.source.collate, self.form)(rows)
        return self.source.collate([sample for row in rows for sample in row])

    def notes(self, schedule: Schedule) -> dict[str, Any]:
        """What the report says of the data."""
        notes: dict[str, Any] = {"short": short} if (short := self.short()) else {}
        if isinstance(schedule, Windows):
            notes |= schedule.counted()
        if "sources" in notes:
            notes["sources"] = {self.parts[int(n)][0].name: count for n, count in sorted(notes["sources"].items())}
        return {"data": notes} if notes else {}

    def _in_order(self) -> bool:
        """Whether the samples of one source are seen one by one, epoch after epoch."""
        single = len(self.parts) == 1 and not isinstance(self.source, Streamed)
        return single and not (self.config.pack or self.config.bucket)

    def _cursor(self) -> Cursor:
        cursors: list[Cursor] = [self._cursor_of(source, number) for number, (source, _) in enumerate(self.parts)]
        if len(cursors) == 1:
            return cursors[0]
        return Mixed(cursors, [weight for _, weight in self.parts], self.seed)

    def _cursor_of(self, source: Source, number: int) -> Cursor:
        if isinstance(source, Streamed):
            return StreamCursor(source.stream, self.seed, number, wanted=self._each)
        return InMemory(source.train, self.seed, number)

    def _arrangement(self) -> Arrangement:
        if self.config.pack:
            return packed(self._room(), self.seed)
        if self.config.bucket:
            return bucketed(self.config.batch_size, self.seed)
        return one_by_one(self.config.batch_size)

    def _room(self) -> int:
        if self.config.max_length is None:
            raise DataError("train.pack: max_length says how many tokens a row has; give it")
        return self.config.max_length

    def _some_tokens(self) -> list[int]:
        cursor = self._cursor()
        samples = [untagged(cursor.take()) for _ in range(_LOOKED_AT)]
        return [token for sample in samples for token in torch.as_tensor(sample["input_ids"]).flatten().tolist()]

    @property
    def _each(self) -> int:
        """Samples of a step."""
        return self.config.batch_size * self.config.gradient_accumulation

    def short(self) -> str | None:
        """What is to be said of a source with fewer samples than a step takes."""
        each = self._each
        found = {source.name: len(source.train) for source, _ in self.parts if not isinstance(source, Streamed)}
        few = [f"{name} has {count}" for name, count in found.items() if count < each]
        return too_few(each, ", ".join(few)) if few else None


def open_feed(config: Train, open_data: Opener, seed: int) -> Feed:
    """The data that `config` names. Raises DataError."""
    sources = _opened(config, open_data)
    for name, source in sources.items():
        if not (isinstance(source, Streamed) or len(source.train)):
            raise DataError(f"{name} has no training samples")
    parts = distinct(sources, config.sources)
    feed = Feed(config, parts, joined(parts), seed)
    if (config.pack or config.bucket) and feed.source.kind != "text":
        raise DataError(f"{feed.source.name} has images: how long a sample is shows later; leave pack and bucket out")
    if (short := feed.short()) is not None:
        _log.warning("%s", short)
    return feed


def check_held_out(config: Train, open_data: Opener) -> None:
    """DataError where `config` looks at a validation split and none of its data has one."""
    if config.validation is None and config.search is None:
        return
    sources = _opened(config, open_data).values()
    if not any(len(source.validation) for source in sources):
        raise none_held_out(" + ".join(source.name for source in sources))


def _opened(config: Train, open_data: Opener) -> dict[str, Source]:
    """The sources that `config` names, as it reads them."""
    reading = reading_of(config)
    more = () if reading == USUAL else (reading,)
    return {name: open_data(name, config.max_length, *more) for name in config.sources}
