"""What the doctor found wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`error`: mote-quant cannot work like this. `warning`: it can, but slowly, or not in all it offers."""

    severity: Literal["error", "warning"]
    what: str
    advice: str


def error(what: str, advice: str) -> Finding:
    """Something without which nothing works."""
    return Finding("error", what, advice)


def warning(what: str, advice: str) -> Finding:
    """Something to know."""
    return Finding("warning", what, advice)
