"""A cell is one piece of a sweep's work: what it is made of decides its key, and its key where its result lies.

A cell that is done is never run again; a cell of another recipe, model or data set has another key. Nothing here
imports torch: a finished sweep is read in a moment.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote_quant.errors import ArtifactError, SaveError
from mote_quant.hf.integrity import write_atomic
from mote_quant.version import __version__

_RESULT = "result.json"
AGAIN = "again"
"""A result with this key is of use now, but the cell is to be done again next time."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Work for one process: `kind` names the function, `settings` what it is given (JSON-ready).

    `folder` is the cell's own.
    """

    kind: str
    folder: Path
    settings: dict[str, Any]


def key_of(kind: str, settings: dict[str, Any], identity: dict[str, Any]) -> str:
    """The key of a cell: a hash over what decides its result.

    `identity` says of its inputs what their paths do not: keys of the cells and hashes of the files they come from.
    """
    text = json.dumps([__version__, kind, settings, identity])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def make_job(root: Path, kind: str, settings: dict[str, Any], places: dict[str, Any], identity: dict[str, Any]) -> Job:
    """A job whose `places` (folders and the like) do not count for its key; `identity` counts in their stead."""
    return Job(kind, root / "cells" / f"{kind}-{key_of(kind, settings, identity)}", settings | places)


def stored_result(job: Job) -> Result | None:
    """What this cell came to, or None when it has not been done. ArtifactError for a damaged result."""
    path = job.folder / _RESULT
    if not path.exists():
        return None
    advice = f"delete {job.folder} to do this cell again"
    try:
        values = json.loads(path.read_text())
        result: Result = values["result"]
        intact = values["sha256"] == _digest(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}); {advice}") from error
    if not intact:
        raise ArtifactError(f"{path} was altered after it was written; {advice}")
    return result


def store_result(job: Job, result: Result) -> None:
    """Keep the result of a cell, whole or not at all. SaveError."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        values = {"kind": job.kind, "result": result, "sha256": _digest(result)}
        text = json.dumps(values, indent=1, allow_nan=False)
        write_atomic(job.folder / _RESULT, text)
    except OSError as error:
        raise SaveError(
            f"{job.folder} could not be written: {error}; free space and run the same command again"
        ) from error


def worded(error: BaseException) -> str:
    """An error that is not ours, in one line."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _digest(result: Result) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
