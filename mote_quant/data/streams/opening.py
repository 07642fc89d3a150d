"""Opening a stream: a look at its first rows, and those held out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mote_quant.data import text
from mote_quant.data.processors import image_processor_of
from mote_quant.data.questions import Questions, shows_images
from mote_quant.data.readers import Blocks, Reader, reader_of
from mote_quant.data.reading import Reading
from mote_quant.data.source import Sample, fingerprint_of
from mote_quant.data.streams.feeds import Rows, rows_of
from mote_quant.data.streams.stream import Stream, Streamed
from mote_quant.data.streams.walk import Walk
from mote_quant.errors import DataError


def open_stream(name: str, local: bool, processor: Any, max_length: int | None, reading: Reading) -> Streamed:
    """A stream as a source. Raises DataError.

    `local`: it is a place on this machine. Only the first row, and those held out, are read here.
    """
    tokenizer = text.tokenizer_of(processor, name)
    rows = rows_of(name, local)
    first = _first(rows)
    if shows_images(first):
        seeing = image_processor_of(processor, name)
        make = partial(_questions, rows, seeing, max_length)
    else:
        make = partial(reader_of, name, frozenset(first), tokenizer, max_length, reading.apart)
    reader = make()
    fingerprint = fingerprint_of("stream", rows.identity, reading.described(), *reader.settings)
    block = reader.length if isinstance(reader, Blocks) else 0
    stream = Stream(rows, make, reading, block)
    held_out = _held_out(stream)
    return Streamed(name, fingerprint, [], held_out, [], reader.collate, reader.kind, stream)


def _questions(rows: Rows, processor: Any, max_length: int | None) -> Reader:
    return Questions(rows.name, processor, rows.folder, max_length)


def _first(rows: Rows) -> Mapping[str, Any]:
    walk = Walk(rows)
    while (row := walk.next()) is not None:
        if (parsed := _parsed(rows, walk.row, row)) is not None:
            return parsed
    raise DataError(f"{rows.name} has no rows")


def _held_out(stream: Stream) -> list[Sample]:
    samples: list[Sample] = []
    walk, reader = Walk(stream.rows), stream.reader()
    while walk.row < stream.reading.validation_rows and (row := walk.next()) is not None:
        parsed = _parsed(stream.rows, walk.row, row)
        samples += [] if parsed is None else reader.samples(parsed, f"{stream.name}, row {walk.row}")
    if stream.reading.validation_rows and walk.next() is None:
        raise DataError(f"{stream.name} {stream.reading.all_held_out}")
    return samples


def _parsed(rows: Rows, number: int, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    try:
        return rows.parse(row)
    except DataError as error:
        raise DataError(f"{rows.name}, row {number}: {error}") from error
