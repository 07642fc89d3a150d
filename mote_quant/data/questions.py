"""Rows with images: questions about them, conversations, or texts that go with them, through the model's processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mote_quant.data import chat
from mote_quant.data.answers import Turn, collate_answers
from mote_quant.data.columns import described, pair_in, string
from mote_quant.data.conversations import conversation, images_within
from mote_quant.data.pictures import COLUMNS, pictures_of
from mote_quant.data.processors import image_token_of, settings_of
from mote_quant.data.source import Sample, Source, fingerprint_of, split
from mote_quant.data.stored import StoredTable
from mote_quant.errors import DataError


def shows_images(row: Mapping[str, Any]) -> bool:
    """Whether a row is one with images: in a column, or in its conversation."""
    return bool(set(COLUMNS).intersection(row)) or images_within(row)


@dataclass(frozen=True)
class Questions:
    """Rows with images, read as they are stored: bytes or paths, which start at `folder`.

    `limit` is the most tokens a row may have. Of a table (`rows`) samples hold the number of their row; of a stream
    they hold the row itself.
    """

    name: str
    processor: Any
    folder: Path
    limit: int | None
    rows: StoredTable | None = None
    kind: str = "vqa"

    @property
    def settings(self) -> list[Any]:
        """What decides how a row looks to the model."""
        return [self.limit, *settings_of(self.processor)]

    def source(self, content: bytes | str) -> Source:
        """The table as a Source. Every image is read once, for the fingerprint and to see that it is there."""
        digests: list[str] = []
        samples: list[Sample] = []
        for index, row in enumerate(self.rows or ()):
            sample, found = self._looked_at(row, f"{self.name}, row {index + 1}")
            digests += found
            samples.append(sample | {"row": index})
        fingerprint = fingerprint_of(content, digests, *self.settings)
        return Source(self.name, fingerprint, **split(samples), collate=self.collate, kind=self.kind)

    def samples(self, row: Mapping[str, Any], where: str) -> list[Sample]:
        """The sample of a row of a stream. DataError for one whose images are not there."""
        return [self._looked_at(row, where)[0]]

    def state(self) -> Any:
        """Nothing is kept from one row to the next."""
        return None

    def load(self, state: Any) -> None:
        """Nothing to do."""

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Model inputs with `labels` over what is answered. DataError for what is longer than the limit."""
        turns = [self._turn(sample) for sample in samples]
        batch = collate_answers(self.processor, turns)
        for turn, length in zip(turns, batch["attention_mask"].sum(1).tolist(), strict=True):
            if self.limit is not None and length > self.limit:
                raise DataError(
                    f"{turn.where}: {length} tokens with its images, the limit is {self.limit}; raise max_length, or "
                    "make the images smaller"
                )
        return batch

    def _turn(self, sample: Sample) -> Turn:
        row, where = sample["row"], sample["where"]
        if self.rows is not None:
            row = self.rows[row]
        images = [picture.load() for picture in pictures_of(row, where, self.folder)]
        return Turn(sample["prompt"], sample["completion"], images, where, sample["rest"])

    def _looked_at(self, row: Mapping[str, Any], where: str) -> tuple[Sample, list[str]]:
        """The sample of a row, and a hash of each of its images."""
        found = pictures_of(row, where, self.folder)
        for picture in found:
            picture.check()
        said = self._said(row, where, len(found))
        return {"row": row, "where": where, **said}, [fingerprint_of(picture.data) for picture in found]

    def _said(self, row: Mapping[str, Any], where: str, images: int) -> dict[str, Any]:
        column = chat.column_in(row)
        if column is not None:
            first, *rest = conversation(row, column, where, images, self.processor)
            return {"prompt": first.text, "completion": "", "rest": rest}
        prompt, completion = self._texts(row, where, images)
        return {"prompt": prompt, "completion": completion, "rest": []}

    def _texts(self, row: Mapping[str, Any], where: str, images: int) -> tuple[str, str]:
        """Prompt and completion. A `text` is what is said to the images alone, or after the last place for one."""
        token = image_token_of(self.processor)
        pair = pair_in(row)
        if pair is not None:
            prompt, completion = (_filled(string(row, column, where), column, where) for column in pair)
        elif "text" in row:
            before, place, after = _cut(string(row, "text", where), token)
            prompt, completion = before + place, _filled(after, "text", where)
        else:
            raise DataError(f"{where} {described(row)}")
        if token is not None:
            _check_places(prompt.count(token), completion.count(token), images, f"{where}: {token}")
        return prompt, completion


def _check_places(asked: int, answered: int, images: int, what: str) -> None:
    if answered:
        raise DataError(f"{what} stands in the answer; images belong into the question")
    if asked not in (0, images):
        raise DataError(f"{what} stands {asked} times in its text, it has {images} image(s)")


def _cut(text: str, token: str | None) -> tuple[str, str, str]:
    return text.rpartition(token) if token else ("", "", text)


def _filled(text: str, column: str, where: str) -> str:
    if not text.strip():
        raise DataError(f"{where}: {column} is empty; write something or leave the row out")
    return text
