"""A local folder of data: what `datasets` saved there (`save_to_disk`), or files of one kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mote_quant.data.local import LOADERS, read_documents, read_rows
from mote_quant.data.rows import from_documents, from_rows
from mote_quant.data.source import Source
from mote_quant.data.text import tokenizer_of
from mote_quant.errors import DataError, first_line

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_TEXT = ".txt"
_KINDS = (".parquet", ".jsonl", ".json", _TEXT)
_SPLIT = "train"


def open_folder(folder: Path, processor: Any = None, max_length: int | None = None, apart: bool = False) -> Source:
    """`folder` as a Source, its files (of the first kind of parquet, jsonl, json and txt there is) one after the other.

    Of a data set saved with splits, `train` is taken. Paths of images start at the folder. Raises DataError.
    """
    tokenizer = tokenizer_of(processor, str(folder))
    if is_saved(folder):
        rows, content = saved(folder), _digest(saved_files(folder))
        return from_rows(str(folder), rows, processor, max_length, content, folder, apart)
    files = of_one_kind(folder)
    if files[0].suffix.lower() in LOADERS:
        return from_rows(str(folder), read_rows(files), processor, max_length, _digest(files), folder, apart)
    documents = [document for path in files for document in read_documents(path)]
    return from_documents(str(folder), documents, tokenizer, max_length, _digest(files), apart)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return (folder / _SAVED).is_file() or (folder / _SAVED_SPLITS).is_file()


def of_one_kind(folder: Path) -> list[Path]:
    """Its files of the first kind there is, by name. DataError for none."""
    for kind in _KINDS:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == kind and path.is_file())
        if files:
            return files
    raise DataError(f"{folder} holds no data: no {', '.join(_KINDS)} files, nor what `save_to_disk` writes")


def saved(folder: Path) -> Any:
    """The table that `save_to_disk` wrote there. DataError for one without the split train."""
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:
        reason = first_line(error)
        raise DataError(f"{folder} cannot be read: {reason}") from error
    if isinstance(found, Dataset):
        return found
    if not isinstance(found, DatasetDict) or _SPLIT not in found:
        raise DataError(f"{folder} has no split {_SPLIT}, but {', '.join(found)}; name the folder of one of them")
    return found[_SPLIT]


def saved_files(folder: Path) -> list[Path]:
    """Every file of it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(files: Sequence[Path]) -> str:
    """A sha256 over the content of all files, in order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(hash_of(path)))
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    """sha256 of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
