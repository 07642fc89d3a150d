"""Files found to be what was written, remembered, so that a model of many gigabytes is not read again at every load.

An entry holds for a file as the system describes it: device, inode, size, times of change. MOTE_QUANT_VERIFY=always
reads every file every time; MOTE_QUANT_CACHE is where entries are kept in place of the user's cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

_log = logging.getLogger(__name__)
_SETTLED_NS = 2 * 10**9
"""A file changed so recently could change again without its times showing it."""


def known(path: Path, sha256: str) -> bool:
    """Whether `path`, unchanged since, was found to have this hash."""
    if os.environ.get("MOTE_QUANT_VERIFY") == "always":
        return False
    try:
        return _entry(path, sha256).read_text() == identity(path)
    except (OSError, RuntimeError):
        return False


def remember(path: Path, sha256: str, before: str) -> None:
    """Enter that `path`, which was `before` when its reading began, has this hash; failing to is no error.

    Nothing is entered of a file that is too new to tell, or that changed meanwhile.
    """
    try:
        if time.time_ns() - path.stat().st_ctime_ns < _SETTLED_NS or identity(path) != before:
            return
        entry = _entry(path, sha256)
        entry.parent.mkdir(parents=True, exist_ok=True)
        aside = entry.with_name(f"{entry.name}.{os.getpid()}")
        aside.write_text(before)
        os.replace(aside, entry)
    except (OSError, RuntimeError) as error:  # a user without a home
        _log.debug("%s is verified, but that could not be noted: %s", path, error)


def identity(path: Path) -> str:
    """What tells a file from another one, or from itself after a change."""
    status = path.stat()
    return " ".join(map(str, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)))


def _entry(path: Path, sha256: str) -> Path:
    own, shared = os.environ.get("MOTE_QUANT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    cache = Path(own) if own else Path(shared or Path.home() / ".cache") / "mote-quant"
    return cache / "verified" / hashlib.sha256(f"{path.resolve()}\n{sha256}".encode()).hexdigest()
