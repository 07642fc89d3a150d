"""Where the rows of a stream come from (files, what `save_to_disk` wrote, the hub), and what identifies them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from mote_quant.data.folders import hash_of, is_saved, of_one_kind, saved, saved_files
from mote_quant.data.hub import advice, identifier, unloadable
from mote_quant.data.local import LOADERS
from mote_quant.data.stored import unfolded
from mote_quant.errors import DataError

Parse = Callable[[Mapping[str, Any]], "Mapping[str, Any] | None"]


@dataclass(frozen=True)
class Rows:
    """`open()` begins a `datasets` stream; `parse` makes a row of what it gives (None: a blank line).

    `identity` (JSON-able) says which data these are; paths of images start at `folder`.
    """

    name: str
    open: Callable[[], Any]
    parse: Parse
    identity: list[Any]
    folder: Path


def rows_of(name: str, local: bool) -> Rows:
    """The rows that `name` means. Raises DataError for what cannot be streamed."""
    if not local:
        return _from_hub(name)
    path = Path(name)
    if path.is_dir() and is_saved(path):
        identity = _identity(saved_files(path))
        return Rows(name, lambda: _stored(saved(path).to_iterable_dataset()), _as_it_is, identity, path)
    files = of_one_kind(path) if path.is_dir() else [path]
    kind = LOADERS.get(files[0].suffix.lower())
    if kind is None:
        raise DataError(
            f"{name}: plain text is read whole; leave stream out, or write it as .jsonl with a text in each row"
        )
    reader, parse = ("text", _parsed) if kind == "json" else (kind, _as_it_is)
    folder = path if path.is_dir() else path.parent
    return Rows(name, _begun_often(lambda: _opened(name, reader, files)), parse, _identity(files), folder)


def _begun_often(open_once: Callable[[], Any]) -> Callable[[], Any]:
    """Opening looks for files, or asks the hub: every epoch begins with a copy that nobody has read from."""
    opened = cache(open_once)
    return lambda: deepcopy(opened())


def _opened(name: str, reader: str, files: Sequence[Path]) -> Any:
    from datasets import load_dataset

    try:
        made = load_dataset(reader, data_files=[str(file) for file in files], split="train", streaming=True)
    except Exception as error:
        raise DataError(f"{name} cannot be read: {error}") from error
    return _stored(made)


def _stored(data: Any) -> Any:
    """Images as they are stored."""
    if not data.features:
        return data
    return data.decode(False).map(partial(unfolded, feature=data.features))


def _from_hub(name: str) -> Rows:
    wanted = identifier(name)
    revision = _revision(wanted.path)

    def opened() -> Any:
        from datasets import config, load_dataset

        try:
            made = load_dataset(wanted.path, wanted.config, split=wanted.split, streaming=True, revision=revision)
        except Exception as error:
            raise DataError(f"{unloadable(name, error)} {advice(config.HF_HUB_OFFLINE, error)}") from error
        return _stored(made)

    return Rows(name, _begun_often(opened), _as_it_is, [wanted.path, wanted.config, wanted.split, revision], Path())


def _revision(path: str) -> str | None:
    """The commit that the hub has now; None where it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(path, timeout=10.0).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError):
        return None


def _identity(files: Sequence[Path]) -> list[Any]:
    """Names, sizes and hashes."""
    return [[file.name, file.stat().st_size, hash_of(file)] for file in files]


def _as_it_is(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def _parsed(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A line of JSONL. DataError for what is none."""
    line = row["text"]
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"it is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError("it is no JSON object; a stream wants one on each line")
    return value
