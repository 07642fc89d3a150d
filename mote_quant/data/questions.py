"""Rows with images: questions about them, or texts that go with them, through the model's own processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mote_quant.data.answers import Turn, collate_answers
from mote_quant.data.columns import pair_in, string
from mote_quant.data.pictures import pictures_of
from mote_quant.data.processors import image_token_of, settings_of
from mote_quant.data.source import Sample, Source, fingerprint_of, split
from mote_quant.errors import DataError

_AT_ONCE = 64


@dataclass(frozen=True)
class Questions:
    """A `datasets` table (in "arrow" format) whose rows have images, read as they are stored: bytes or paths.

    `folder` is where paths start, `limit` the most tokens a row may have.
    """

    name: str
    rows: Any
    processor: Any
    folder: Path
    limit: int | None

    def source(self, content: bytes | str) -> Source:
        """As a Source. Every image is read once, for the fingerprint and to see that it is there; DataError if not."""
        digests: list[str] = []
        samples: list[Sample] = []
        for index, row in enumerate(self._all()):
            where = self._where(index)
            pictures = pictures_of(row, where, self.folder)
            for picture in pictures:
                picture.check()
            digests += [fingerprint_of(picture.data) for picture in pictures]
            prompt, completion = self._texts(row, where, len(pictures))
            samples.append({"row": index, "prompt": prompt, "completion": completion})
        fingerprint = fingerprint_of(content, digests, self.limit, *settings_of(self.processor))
        return Source(self.name, fingerprint, **split(samples), collate=self.collate, kind="vqa")

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Model inputs with `labels` over the completions. DataError for what is longer than the limit."""
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
        where = self._where(sample["row"])
        row = self.rows[sample["row"]].to_pylist()[0]
        images = [picture.load() for picture in pictures_of(row, where, self.folder)]
        return Turn(sample["prompt"], sample["completion"], images, where)

    def _all(self) -> Iterator[dict[str, Any]]:
        for table in self.rows.iter(_AT_ONCE):
            yield from table.to_pylist()

    def _where(self, index: int) -> str:
        return f"{self.name}, row {index + 1}"

    def _texts(self, row: Mapping[str, Any], where: str, images: int) -> tuple[str, str]:
        """Prompt and completion. A `text` is what is said to the images alone, or after the last place for one."""
        token = image_token_of(self.processor)
        pair = pair_in(row)
        if pair is not None:
            prompt, completion = (_filled(string(row, column, where), column, where) for column in pair)
        else:
            before, place, after = _cut(string(row, "text", where), token)
            prompt, completion = before + place, _filled(after, "text", where)
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
