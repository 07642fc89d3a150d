"""A table as a Source: rows with `text`, rows with a question and its answer, either with images or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mote_quant.data import pictures, text
from mote_quant.data.columns import PAIRS, pair_in, string
from mote_quant.data.processors import image_processor_of
from mote_quant.data.questions import Questions
from mote_quant.data.source import Sample, Source, fingerprint_of, split
from mote_quant.errors import DataError


def from_rows(
    name: str, rows: Any, processor: Any, max_length: int | None, content: bytes | str, folder: Path | None = None
) -> Source:
    """A `datasets` table as a Source, by the columns it has. DataError names the row.

    `content` stands for the table in the fingerprint; paths of images start at `folder`.
    """
    if not len(rows):
        raise DataError(f"{name} has no rows")
    columns = set(rows.column_names)
    pair = pair_in(columns)
    if pair is None and "text" not in columns:
        pairs = ", or ".join(" and ".join(names) for names in PAIRS)
        raise DataError(f"{name} has the columns {', '.join(sorted(columns))}; needed are text, or {pairs}")
    if columns.intersection(pictures.COLUMNS):
        stored, processor = rows.with_format("arrow"), image_processor_of(processor, name)
        return Questions(name, stored, processor, folder or Path(), max_length).source(content)
    tokenizer = text.tokenizer_of(processor, name)
    length = text.block_length(tokenizer, max_length)
    fingerprint = fingerprint_of(content, length, tokenizer.get_vocab())
    if pair is None:
        documents = [string(row, "text", f"{name}, row {index}") for index, row in enumerate(rows, 1)]
        return from_documents(name, documents, tokenizer, length, fingerprint)
    samples = [_answer(row, pair, f"{name}, row {index}", tokenizer, length) for index, row in enumerate(rows, 1)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    collate = partial(text.collate_answers_text, pad=pad)
    return Source(name, fingerprint, **split(samples), collate=collate, kind="text")


def from_documents(name: str, documents: Sequence[str], tokenizer: Any, length: int, fingerprint: str) -> Source:
    """Documents as a Source of text blocks. DataError when they do not fill one."""
    samples = text.blocks(documents, tokenizer, length)
    if not samples:
        raise DataError(f"{name} has fewer than {length} tokens, not one block; give more text or a smaller max_length")
    return Source(name, fingerprint, **split(samples), collate=text.collate_blocks, kind="text")


def _answer(row: Mapping[str, Any], pair: tuple[str, str], where: str, tokenizer: Any, length: int) -> Sample:
    prompt, completion = (string(row, column, where) for column in pair)
    sample = text.answer_sample(prompt, completion, tokenizer)
    tokens = len(sample["input_ids"])
    if tokens > length:
        raise DataError(f"{where}: {tokens} tokens, the limit is {length}; raise max_length or shorten it")
    return sample
