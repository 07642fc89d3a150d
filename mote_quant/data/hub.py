"""A data set of the `datasets` library by id: only when the user names it, and nothing else is downloaded."""

from __future__ import annotations

from typing import Any

from mote_quant.data.rows import from_rows
from mote_quant.data.source import Source
from mote_quant.data.text import tokenizer_of
from mote_quant.errors import DataError


def open_dataset(name: str, processor: Any = None, max_length: int | None = None) -> Source:
    """The `train` split of data set `name` as a Source, by the same columns as local files. Raises DataError."""
    from datasets import load_dataset

    # Before anything is downloaded.
    tokenizer_of(processor, name)
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"{name!r} is no embedded source (digits-vqa, stdlib-text) and no local file, and `datasets` could not "
            f"load it: {reason}. Check the name; offline, give a local .txt, .jsonl or .parquet file"
        ) from error
    return from_rows(name, rows, processor, max_length, rows._fingerprint)
