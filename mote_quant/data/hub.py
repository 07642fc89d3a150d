"""A data set of the `datasets` library by id: only when the user names it, and nothing else is downloaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mote_quant.data.rows import from_rows
from mote_quant.data.source import Source
from mote_quant.data.text import tokenizer_of
from mote_quant.errors import DataError, first_line

_ID = re.compile(r"(?P<path>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[^@]+))?")
_OFFLINE = "give a local .txt, .jsonl or .parquet file, or a folder of them"


@dataclass(frozen=True)
class DatasetId:
    """`path[:config][@split]`, as `Salesforce/wikitext:wikitext-2-raw-v1@train[:10%]`."""

    path: str
    config: str | None
    split: str

    @classmethod
    def parse(cls, name: str) -> DatasetId | None:
        """None for what cannot be an id."""
        found = _ID.fullmatch(name)
        return None if found is None else cls(found["path"], found["config"], found["split"] or "train")


def open_dataset(name: str, processor: Any = None, max_length: int | None = None, apart: bool = False) -> Source:
    """Data set `name` (`id[:config][@split]`, split `train` without) as a Source, by the same columns as local files.

    Raises DataError.
    """
    # Before anything is downloaded.
    tokenizer_of(processor, name)
    rows = _loaded(name, identifier(name))
    return from_rows(name, rows, processor, max_length, rows._fingerprint, apart=apart)


def identifier(name: str) -> DatasetId:
    """What `name` says. DataError for what can be none."""
    wanted = DatasetId.parse(name)
    if wanted is None:
        raise DataError(
            f"{name!r} is no embedded source (digits-vqa, stdlib-text), no local file, and no `datasets` id, which is "
            "written owner/name, owner/name:config or owner/name:config@split"
        )
    return wanted


def _loaded(name: str, wanted: DatasetId) -> Any:
    from datasets import config, load_dataset

    try:
        return load_dataset(wanted.path, wanted.config, split=wanted.split)
    except Exception as error:
        raise DataError(f"{unloadable(name, error)} {advice(config.HF_HUB_OFFLINE, error)}") from error


def unloadable(name: str, error: Exception) -> str:
    """What became of `name`."""
    reason = first_line(error)
    return (
        f"{name!r} is no embedded source (digits-vqa, stdlib-text) and no local file, and `datasets` could not "
        f"load it: {reason.rstrip('.')}."
    )


def advice(offline: bool, error: Exception) -> str:
    """What to do about it."""
    if offline:
        return f"HF_HUB_OFFLINE is set, so only data sets downloaded before can be used: unset it, or {_OFFLINE}"
    if isinstance(error, ConnectionError):
        return f"Check the connection, or {_OFFLINE}"
    return f"Check the name (owner/name[:config][@split]), or {_OFFLINE}"
