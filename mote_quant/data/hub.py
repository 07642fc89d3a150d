"""A data set of the `datasets` library by id: only when the user names it, and nothing else is downloaded."""

from __future__ import annotations

from typing import Any

from mote_quant.data import text
from mote_quant.data.local import from_rows
from mote_quant.data.source import Source, fingerprint_of
from mote_quant.errors import DataError


def open_dataset(name: str, processor: Any = None, max_length: int | None = None) -> Source:
    """The `train` split of data set `name` as a Source, by the same columns as local files. Raises DataError."""
    from datasets import load_dataset

    tokenizer = text.tokenizer_of(processor, name)
    try:
        rows = load_dataset(name, split="train")
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"{name!r} is no embedded source (digits-vqa, stdlib-text) and no local file, and `datasets` could not "
            f"load it: {reason}. Check the name; offline, give a local .txt, .jsonl or .parquet file"
        ) from error
    length = text.block_length(tokenizer, max_length)
    return from_rows(name, rows, tokenizer, length, fingerprint_of(rows._fingerprint, length, tokenizer.get_vocab()))
