"""A table as a Source: rows with `text`, conversations, or a question and its answer, with images or without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mote_quant.data import text
from mote_quant.data.processors import image_processor_of
from mote_quant.data.questions import Questions, shows_images
from mote_quant.data.readers import Blocks, Documents, Reader, Row, reader_of
from mote_quant.data.source import Source, fingerprint_of, split
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
    found = (reader.samples(row, f"{name}, row {index}") for index, row in enumerate(rows, 1))
    samples = [sample for made in found for sample in made]
    if not samples:
        raise DataError(f"{name} {too_little(reader)}")
    fingerprint = fingerprint_of(content, *reader.settings)
    return Source(name, fingerprint, **split(samples), collate=reader.collate, kind=reader.kind)


def too_little(reader: Reader) -> str:
    """Why rows gave no sample."""
    if isinstance(reader, Blocks):
        return f"has fewer than {reader.length} tokens, not one block; give more text or a smaller max_length"
    return "has nothing to learn in it: every text is a single token"
