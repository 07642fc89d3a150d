"""Local files: plain text, or JSONL and parquet with rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mote_quant.data import text
from mote_quant.data.rows import from_documents, from_rows
from mote_quant.data.source import Source
from mote_quant.errors import DataError, first_line

DOCUMENT_END = "<|endoftext|>"
"""The mark that separates documents in plain text, as TinyStories and others have it."""
LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Ending of a file with rows -> how it is read."""


def open_file(path: Path, processor: Any = None, max_length: int | None = None, apart: bool = False) -> Source:
    """A local file as a Source: the last 5 % is the test split, the 5 % before it validation. Raises DataError."""
    if path.is_dir():
        from mote_quant.data.folders import open_folder

        return open_folder(path, processor, max_length, apart)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    tokenizer = text.tokenizer_of(processor, str(path))
    content = path.read_bytes()
    if content.isspace():
        raise DataError(f"{path} is empty: it holds nothing but blank lines")
    if path.suffix.lower() in LOADERS:
        return from_rows(str(path), read_rows(path), processor, max_length, content, path.parent, apart)
    return from_documents(str(path), read_documents(path), tokenizer, max_length, content, apart)


def read_documents(path: Path) -> list[str]:
    """The documents of a plain text file. DataError when it is not UTF-8."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    return [document for part in content.split(DOCUMENT_END) if (document := part.strip())]


def read_rows(files: Path | Sequence[Path]) -> Any:
    """JSONL or parquet files, all of one kind, as a table of `datasets`. DataError with the reader's own reason."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    paths = [files] if isinstance(files, Path) else files
    reader = {"json": Dataset.from_json, "parquet": Dataset.from_parquet}[LOADERS[paths[0].suffix.lower()]]
    try:
        return reader([str(path) for path in paths])
    except (DatasetGenerationError, ValueError, OSError) as error:
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{', '.join(map(str, paths))} cannot be read: {reason}") from error
