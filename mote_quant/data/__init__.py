"""What it learns from: embedded sources, local files, `datasets`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mote_quant.data.processors import image_processor_of
from mote_quant.data.reading import USUAL, Reading
from mote_quant.data.source import Sample, Source
from mote_quant.errors import DataError
from mote_quant.recipe.near import did_you_mean

__all__ = ["Sample", "Source", "check_there", "open_source", "set_apart"]

Opener = Callable[[Any, int | None, int, bool], Source]


def open_source(
    name: str, *, processor: Any = None, max_length: int | None = None, seed: int = 0, reading: Reading = USUAL
) -> Source:
    """Open what a recipe names: an embedded source, a local .txt/.jsonl/.parquet file or folder, or a `datasets` id.

    Rows have `text`, or `prompt` and `completion` (else `question` and `answer`), or a conversation in `messages` (or
    `conversations`), and may have an `image` or `images` beside it. `processor` is the model's tokenizer or processor
    (embedded sources have one of their own), `max_length` the most tokens a sample may have, `reading` what else is
    wanted. Raises DataError, MissingExtraError.
    """
    if name in _EMBEDDED:
        # It is small, and in memory anyway.
        return _EMBEDDED[name](processor, max_length, seed, reading.apart)
    if _is_path(name):
        check_there(name)
    if reading.stream:
        from mote_quant.data.streams import open_stream

        return open_stream(name, _is_path(name), processor, max_length, reading)
    if _is_path(name):
        from mote_quant.data.local import open_file

        return open_file(Path(name), processor, max_length, reading.apart)
    from mote_quant.data.hub import open_dataset

    return open_dataset(name, processor, max_length, reading.apart)


def set_apart(name: str) -> bool:
    """Whether somebody who names `name` to measure on set it apart for that: a place here, or a split (`id@split`).

    Embedded sources and ids without a split are what a model may have been trained on, and have a test split.
    """
    return name not in _EMBEDDED and (_is_path(name) or "@" in name)


def check_there(name: str) -> None:
    """DataError with near misses where `name` means a place on this machine that is not there."""
    path = Path(name)
    if name in _EMBEDDED or not _is_path(name) or path.exists():
        return
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, beside, limit=3) or f"; {_ASK}"
    raise DataError(f"{name} does not exist{hint}")


def _is_path(name: str) -> bool:
    """Whether `name` means a place on this machine, there or not: a mistyped path is not looked up on the network."""
    path = Path(name)
    beside = path.parent != Path() and path.parent.is_dir()
    return path.suffix.lower() in _LOCAL or path.exists() or path.is_absolute() or name.startswith(".") or beside


def _digits_vqa(processor: Any, max_length: int | None, seed: int, apart: bool) -> Source:
    from mote_quant.data.digits_vqa.source import build_source

    if processor is not None:
        image_processor_of(processor, "digits-vqa")
    return build_source(processor, seed)


def _stdlib_text(processor: Any, max_length: int | None, seed: int, apart: bool) -> Source:
    from mote_quant.data.stdlib_text.source import build_source

    return build_source(processor, max_length, apart)


_EMBEDDED: dict[str, Opener] = {"digits-vqa": _digits_vqa, "stdlib-text": _stdlib_text}
_ASK = "give a .txt, .jsonl or .parquet file, a folder of them, an embedded source or a datasets id"
_LOCAL = (".txt", ".jsonl", ".json", ".parquet")
