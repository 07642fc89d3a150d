"""Local files: plain text, or JSONL and parquet with a `text` column or with `prompt` and `completion`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mote_quant.data import text
from mote_quant.data.source import Sample, Source, fingerprint_of
from mote_quant.errors import DataError

DOCUMENT_END = "<|endoftext|>"
"""The mark that separates documents in plain text, as TinyStories and others have it."""
_HELD_OUT = 0.05
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

Rows = Iterable[dict[str, Any]]


def open_file(path: Path, processor: Any = None, max_length: int | None = None) -> Source:
    """A local file as a Source: the last 5 % is the test split, the 5 % before it validation. Raises DataError."""
    if not path.exists():
        raise DataError(
            f"{path} does not exist; give a .txt, .jsonl or .parquet file, an embedded source or a datasets id"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a .txt, .jsonl or .parquet file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    tokenizer = text.tokenizer_of(processor, str(path))
    length = text.block_length(tokenizer, max_length)
    fingerprint = fingerprint_of(path.read_bytes(), length, tokenizer.get_vocab())
    if path.suffix.lower() in _LOADERS:
        return from_rows(str(path), read_rows(path), tokenizer, length, fingerprint)
    return from_documents(str(path), read_documents(path), tokenizer, length, fingerprint)


def read_documents(path: Path) -> list[str]:
    """The documents of a plain text file. DataError when it is not UTF-8."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    return [document for part in content.split(DOCUMENT_END) if (document := part.strip())]


def read_rows(path: Path) -> Rows:
    """The rows of a JSONL or parquet file, through `datasets`. DataError with the reader's own reason."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    reader = {"json": Dataset.from_json, "parquet": Dataset.from_parquet}[_LOADERS[path.suffix.lower()]]
    try:
        rows: Rows = reader(str(path))
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}") from error
    return rows


def from_documents(name: str, documents: Sequence[str], tokenizer: Any, length: int, fingerprint: str) -> Source:
    """Documents as a Source of text blocks."""
    samples = text.blocks(documents, tokenizer, length)
    if not samples:
        raise DataError(f"{name} has fewer than {length} tokens, not one block; give more text or a smaller max_length")
    return Source(name, fingerprint, **split(samples), collate=text.collate_blocks, kind="text")


def from_rows(name: str, rows: Rows, tokenizer: Any, length: int, fingerprint: str) -> Source:
    """Rows as a Source, by the columns the first one has. DataError names the row."""
    listed = list(rows)
    if not listed:
        raise DataError(f"{name} has no rows")
    columns = set(listed[0])
    if {"prompt", "completion"} <= columns:
        samples = [_answer(name, index, row, tokenizer, length) for index, row in enumerate(listed)]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        return Source(
            name, fingerprint, **split(samples), collate=partial(text.collate_answers_text, pad=pad), kind="text"
        )
    if "text" not in columns:
        raise DataError(
            f"{name} has the columns {', '.join(sorted(columns))}; needed are text, or prompt and completion"
        )
    documents = [_string(name, index, row, "text") for index, row in enumerate(listed)]
    return from_documents(name, documents, tokenizer, length, fingerprint)


def _answer(name: str, index: int, row: dict[str, Any], tokenizer: Any, length: int) -> Sample:
    prompt, completion = (_string(name, index, row, column) for column in ("prompt", "completion"))
    sample = text.answer_sample(prompt, completion, tokenizer)
    if len(sample["input_ids"]) > length:
        raise DataError(
            f"{name}, row {index + 1}: {len(sample['input_ids'])} tokens, the limit is {length}; "
            "raise max_length or shorten it"
        )
    return sample


def _string(name: str, index: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(f"{name}, row {index + 1}: {column} is {value!r}, text is needed")
    return value


def split(samples: list[Sample]) -> dict[str, list[Sample]]:
    """Train, validation and test by position; a handful of samples is all train."""
    held = int(len(samples) * _HELD_OUT)
    cut = len(samples) - 2 * held
    return {"train": samples[:cut], "validation": samples[cut : cut + held], "test": samples[cut + held :]}
