"""A table as a Source: rows with `text`, conversations, or a question and its answer, with images or without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mote_quant.data import text
from mote_quant.data.processors import image_processor_of
from mote_quant.data.questions import Questions, shows_images
from mote_quant.data.readers import Blocks, Documents, Reader, Row, TooLongError, no_block, reader_of
from mote_quant.data.source import Sample, Source, fingerprint_of, split
from mote_quant.data.stored import StoredTable
from mote_quant.errors import DataError


def from_rows(
    name: str,
    rows: Any,
    processor: Any,
    max_length: int | None,
    content: bytes | str,
    folder: Path | None = None,
    apart: bool = False,
) -> Source:
    """A `datasets` table as a Source, by the columns it has. DataError names the row.

    `content` stands for the table in the fingerprint; paths of images start at `folder`; `apart` as in `Reading`.
    """
    if not len(rows):
        raise DataError(f"{name} has no rows")
    stored = StoredTable(rows)
    if shows_images(stored[0]):
        illustrated = image_processor_of(processor, name)
        return Questions(name, illustrated, folder or Path(), max_length, stored).source(content)
    tokenizer = text.tokenizer_of(processor, name)
    return from_read(name, rows, reader_of(name, rows.column_names, tokenizer, max_length, apart), content)


def from_documents(
    name: str, documents: Sequence[str], tokenizer: Any, max_length: int | None, content: bytes | str, apart: bool
) -> Source:
    """Documents as a Source of text. DataError when they do not fill a block."""
    length = text.block_length(tokenizer, max_length)
    reader = Documents(tokenizer, length) if apart else Blocks(tokenizer, length)
    return from_read(name, ({"text": document} for document in documents), reader, content)


def from_read(name: str, rows: Iterable[Row], reader: Reader, content: bytes | str) -> Source:
    """All samples that `reader` makes of `rows`."""
    samples: list[Sample] = []
    numbered = enumerate(rows, 1)
    for index, row in numbered:
        try:
            samples += reader.samples(row, f"{name}, row {index}")
        except TooLongError as error:
            raise TooLongError(error.message + _more(name, numbered, reader)) from error
    if not samples:
        raise DataError(f"{name} {too_little(reader)}")
    fingerprint = fingerprint_of(content, *reader.settings)
    return Source(name, fingerprint, **split(samples), collate=reader.collate, kind=reader.kind)


def _more(name: str, rest: Iterable[tuple[int, Row]], reader: Reader) -> str:
    """How many of the rows behind the first that is too long are so, too: it spares finding them one by one."""
    count = 1
    for index, row in rest:
        try:
            reader.samples(row, f"{name}, row {index}")
        except TooLongError:
            count += 1
        except DataError:
            continue
    return f" ({count:,} rows are too long in all)" if count > 1 else ""


def too_little(reader: Reader) -> str:
    """Why rows gave no sample."""
    if isinstance(reader, Blocks):
        return no_block(reader.length)
    return "has nothing to learn in it: every text is a single token"
