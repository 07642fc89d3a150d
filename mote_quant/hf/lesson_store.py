"""A teacher's lessons on disk: what it said of each row of a batch, in safetensors shards that are whole or not there.

FOLDER/<key>/identity.json  lessons-<digest>.safetensors. The key follows from the identity (whose lessons, of what, how
much of them), a row's from its tensors without padding: whatever batch a row comes in, its lesson is found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mote_quant.errors import ArtifactError, RequestError, SaveError
from mote_quant.hf.integrity import sync, write_atomic
from mote_quant.hf.states import attended

_log = logging.getLogger(__name__)
_SHARD_BYTES = 64 << 20
_ABANDONED = 24 * 60 * 60
"""Seconds after which a shard that is half written belongs to nobody."""
_IDENTITY = "identity.json"
Row = dict[str, Tensor]


class LessonStore:
    """The lessons of one identity. Raises ArtifactError for a folder that is not what it seems, SaveError."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True, indent=1)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:20]
        self._places: dict[str, tuple[Path, dict[str, int]]] = {}
        self._open: dict[Path, Any] = {}
        self._waiting: dict[str, Row] = {}
        self._waiting_bytes = 0
        self._enter(text)

    def _enter(self, text: str) -> None:
        path = self.folder / _IDENTITY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                with FileLock(self.folder / ".lock"):
                    write_atomic(path, text)
            known = path.read_text()
        except OSError as error:
            raise SaveError(f"{self.folder} cannot be used as a cache: {error}; name another distill.cache") from error
        if known != text:
            raise ArtifactError(f"{path} is not what this cache was made with; delete {self.folder} to make it again")
        self.refresh()

    def tidy(self) -> None:
        """Remove what a process that was killed had half written, long enough ago that nobody is at it any more."""
        for path in self.folder.glob(".lessons-*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def refresh(self) -> None:
        """Look for shards that others have written."""
        for path in sorted(self.folder.glob("lessons-*.safetensors")):
            if path not in self._open:
                self._take_in(path)

    def _take_in(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            checks = json.loads(cast(Any, file).metadata()["checks"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s cannot be read (%s): its lessons are asked for again", path, error)
            path.unlink(missing_ok=True)
            return
        self._open[path] = file
        rows: dict[str, tuple[Path, dict[str, int]]] = {}
        for name, check in checks.items():
            key, _, part = name.partition(".")
            rows.setdefault(key, (path, {}))[1][part] = check
        self._places = rows | self._places

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._waiting

    def read(self, key: str) -> Row:
        """The lesson of a row. ArtifactError where there is none, or it was altered."""
        if key not in self._places:
            raise ArtifactError(f"{self.folder} has no lesson for a row that is trained on: run the same command again")
        path, checks = self._places[key]
        row = {part: self._open[path].get_tensor(f"{key}.{part}") for part in checks}
        for part, tensor in row.items():
            if _check(tensor) != checks[part]:
                raise ArtifactError(f"{path} was altered after it was written; delete it to have it made again")
        return row

    def add(self, key: str, row: Row) -> None:
        """Keep a lesson; it is on disk once a shard is full, or with `flush`."""
        self._waiting[key] = {name: tensor.cpu().contiguous() for name, tensor in row.items()}
        self._waiting_bytes += sum(tensor.nbytes for tensor in row.values())
        if self._waiting_bytes >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting. SaveError."""
        if not self._waiting:
            return
        tensors = {f"{key}.{name}": tensor for key, row in self._waiting.items() for name, tensor in row.items()}
        checks = {name: _check(tensor) for name, tensor in tensors.items()}
        digest = hashlib.sha256(" ".join(self._waiting).encode()).hexdigest()[:20]
        path = self.folder / f"lessons-{digest}.safetensors"
        # Another run may be writing the same lessons.
        aside = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
        try:
            save_file(tensors, aside, {"checks": json.dumps(checks)})
            sync(aside)
            os.replace(aside, path)
            sync(self.folder)
        except Exception as error:
            aside.unlink(missing_ok=True)
            raise SaveError(
                f"{path} could not be written: {error}; what is there is kept: free space and re-run"
            ) from error
        self._waiting, self._waiting_bytes = {}, 0
        self._take_in(path)

    def require_room(self, wanted: int) -> None:
        """SaveError where the disk has less than `wanted` bytes left."""
        free = shutil.disk_usage(self.folder).free
        if wanted > free:
            raise SaveError(
                f"{self.folder} is to take {wanted} bytes of lessons, and {free} are free: set distill.top_k, name "
                "another distill.cache, or free space"
            )


def check_cache(root: str) -> None:
    """RequestError for a `distill.cache` that is no folder, and never will be one."""
    path = Path(root)
    if path.exists() and not path.is_dir():
        raise RequestError(f"distill.cache: {root} is a file; name a folder (it is made where there is none)")


def row_keys(inputs: Mapping[str, Tensor]) -> list[str]:
    """A key for each row of a batch, of all its tensors without padding (of tensors without rows: all of them)."""
    mask = attended(inputs).cpu()
    digests = [hashlib.sha256() for _ in mask]
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu()
        for index, digest in enumerate(digests):
            digest.update(f"{name} {tensor.dtype} ".encode())
            digest.update(_bytes(_of_row(tensor, index, mask)))
    return [digest.hexdigest()[:32] for digest in digests]


def _of_row(tensor: Tensor, index: int, mask: Tensor) -> Tensor:
    if not tensor.ndim or len(tensor) != len(mask):
        return tensor
    return tensor[index][mask[index]] if tensor.shape[:2] == mask.shape else tensor[index]


def _check(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: Tensor) -> Any:
    return cast(Any, tensor.contiguous().flatten().view(torch.uint8).numpy())
