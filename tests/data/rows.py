"""Rows of data for tests: seeded words, in files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def words(count: int, longest: int = 12, seed: int = 0) -> list[str]:
    """`count` texts of 3 to `longest` letters."""
    drawn = random.Random(seed)
    return ["".join(drawn.choices("abcdefgh ", k=drawn.randint(3, longest))) for _ in range(count)]


def texts(count: int, longest: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a text."""
    return [{"text": text} for text in words(count, longest, seed)]


def pairs(count: int, longest: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a prompt and a completion."""
    return [{"prompt": f"q{text}", "completion": text} for text in words(count, longest, seed)]


def jsonl(path: Path, rows: Iterable[Any]) -> str:
    """Write them; returns the path."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
