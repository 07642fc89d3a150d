"""Is a file on disk the file that was written? Sizes and sha256, and writes that are whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mote_quant.errors import ArtifactError, SaveError
from mote_quant.hf.verified import identity, known, remember

_CHUNK = 1 << 22
_COPY = "copy or build it again"


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256, as a manifest keeps them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def verify_files(paths: Iterable[str | Path], manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ArtifactError, naming the file, unless every file of `paths` is listed in `manifest` and matches it."""
    found = {Path(path).name: Path(path) for path in paths}
    for name in manifest:
        if name not in found:
            raise ArtifactError(f"{name} is missing beside config.json; the model is not whole. Copy or build it again")
    for name, path in found.items():
        if name not in manifest:
            raise ArtifactError(f"{path} is not one of the files this model was saved with ({', '.join(manifest)})")
        verify_file(path, manifest[name])


def read_manifest(path: Path, advice: str, part: str | None = None) -> dict[str, dict[str, Any]]:
    """File name -> size and sha256, as `path` (or `part` of it) lists them. ArtifactError ending in `advice`."""
    try:
        values = json.loads(path.read_text())
        listed = values if part is None else values[part]
        manifest = {name: {"bytes": int(row["bytes"]), "sha256": str(row["sha256"])} for name, row in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}: {error}); {advice}") from error
    if not manifest:
        raise ArtifactError(f"{path} names no files; {advice}")
    return manifest


def verify_file(path: Path, expected: Mapping[str, Any], advice: str = _COPY) -> None:
    """Raise ArtifactError, ending in `advice`, unless `path` has the size and sha256 of `expected`.

    A file that was found to have them is read again only once it has changed.
    """
    size = path.stat().st_size if path.exists() else -1
    if size < 0:
        raise ArtifactError(f"{path} is missing; {advice}")
    if size != expected["bytes"]:
        raise ArtifactError(
            f"{path} has {size} bytes, {expected['bytes']} were written: truncated or replaced; {advice}"
        )
    if known(path, expected["sha256"]):
        return
    before = identity(path)
    if sha256(path) != expected["sha256"]:
        raise ArtifactError(f"{path} was altered after it was written (its sha256 differs); {advice}")
    remember(path, expected["sha256"], before)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `path` so that a reader, or the next run after a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def keep(path: Path, text: str) -> None:
    """`write_atomic`, in a folder that need not be there yet. SaveError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise SaveError(f"{path} could not be written: {error}; free space and re-run") from error
