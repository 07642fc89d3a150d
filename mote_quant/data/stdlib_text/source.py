"""The `stdlib-text` source: blocks of source text, held out by file."""

from __future__ import annotations

from typing import Any

from mote_quant.data import text
from mote_quant.data.readers import Documents
from mote_quant.data.source import Source, fingerprint_of
from mote_quant.data.stdlib_text.corpus import documents
from mote_quant.data.stdlib_text.processor import build_processor

NAME = "stdlib-text"
LENGTH = 128


def build_source(processor: Any = None, max_length: int | None = None, apart: bool = False) -> Source:
    """With another model's tokenizer, or the embedded one; blocks of 128 tokens unless `max_length` says otherwise.

    `apart`: no block has more than one file in it.
    """
    tokenizer = text.tokenizer_of(processor, NAME) if processor is not None else build_processor()
    length = max_length or LENGTH
    if apart:
        reader = Documents(tokenizer, length)
        whole = {
            split: [piece for file in files for piece in text.pieces(file, tokenizer, length)]
            for split, files in documents().items()
        }
        fingerprint = fingerprint_of(NAME, documents(), *reader.settings)
        return Source(NAME, fingerprint, **whole, collate=reader.collate, kind=reader.kind)
    splits = {split: text.blocks(files, tokenizer, length) for split, files in documents().items()}
    fingerprint = fingerprint_of(NAME, length, tokenizer.get_vocab(), documents())
    return Source(NAME, fingerprint, **splits, collate=text.collate_blocks, kind="text")
