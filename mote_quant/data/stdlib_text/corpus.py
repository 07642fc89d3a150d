"""Which files of the standard library are read, and which of them are held out."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

from mote_quant.errors import DataError

LIMIT = 6_000_000
"""Characters, files in the order of their names."""
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__", "_pyrepl"}
_HELD_OUT_EVERY = 20


@cache
def documents() -> dict[str, list[str]]:
    """File contents by split. Every 20th file is for testing, the one before it for validation."""
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    total = 0
    for index, path in enumerate(_files(root)):
        content = path.read_text(encoding="utf-8", errors="replace")
        total += len(content)
        if total > LIMIT:
            break
        place = index % _HELD_OUT_EVERY
        split = {_HELD_OUT_EVERY - 1: "test", _HELD_OUT_EVERY - 2: "validation"}.get(place, "train")
        chosen[split].append(content)
    if not chosen["test"]:
        raise DataError(
            f"stdlib-text: {root} holds too few .py files; this Python has no standard library in plain text"
        )
    return chosen


def _files(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))
    return sorted(path for path in found if path.stat().st_size > 0)
