"""What models and data are, beyond their names: hashes that decide whether a cell can be used again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mote_quant.data.embedded import EMBEDDED
from mote_quant.errors import DataError, ModelError
from mote_quant.hf.integrity import sha256, write_atomic

_MEMORY = "hashes.json"
_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class Hashes:
    """sha256 of files, remembered under `folder` for as long as size and time of a file stay the same."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _MEMORY
        self._known: dict[str, Any] = _read(self._path)

    def of(self, path: Path) -> str:
        """Hex digest of the file at `path`."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = self._known.get(str(path.resolve()))
        if not (isinstance(entry, dict) and entry.get("stamp") == stamp):
            entry = {"stamp": stamp, "sha256": sha256(path)}
            self._known[str(path.resolve())] = entry
            write_atomic(self._path, json.dumps(self._known, indent=1))
        return str(entry["sha256"])


def model_identity(name: str, hashes: Hashes) -> dict[str, Any]:
    """An embedded model or a hub id by name; a folder by its weights and config. ModelError for an empty folder."""
    folder = Path(name)
    if not folder.is_dir():
        return {"model": name, **_python(name)}
    files = sorted(file for pattern in _MODEL_FILES for file in folder.glob(pattern))
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{folder} holds no safetensors file: it is no model folder")
    return {file.name: hashes.of(file) for file in files}


def data_identity(name: str, hashes: Hashes) -> dict[str, Any]:
    """A file by its bytes, anything else by its name. DataError for a file that is not there."""
    path = Path(name)
    if path.is_file():
        return {"data": hashes.of(path)}
    if path.suffix in (".txt", ".jsonl", ".json", ".parquet"):
        raise DataError(f"{name} does not exist; give a .txt, .jsonl or .parquet file, an embedded source or an id")
    return {"data": name, **_python(name)}


def tasks_identity(tasks: Sequence[str], hashes: Hashes) -> dict[str, Any]:
    """What decides the score of lm-eval tasks beside their names: lm-eval, the task files of ours, the user's text."""
    if not tasks:
        return {}
    from mote_quant.evaluate.harness import own_folder
    from mote_quant.evaluate.local_tasks import FILE_VARIABLE

    files = [*sorted(own_folder().glob("*.yaml")), Path(os.environ.get(FILE_VARIABLE, ""))]
    named = {file.name: hashes.of(file) for file in files if file.is_file()}
    return {"lm_eval": _version("lm_eval"), "files": named}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python(name: str) -> dict[str, str]:
    """Embedded text is that of the installed Python."""
    return {"python": platform.python_version()} if name in EMBEDDED else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        # A memory of hashes that is lost is only made again.
        return {}
    return values if isinstance(values, dict) else {}
