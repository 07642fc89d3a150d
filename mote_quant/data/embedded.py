"""The embedded models: built in place, from nothing but installed packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Embedded:
    """A model that needs no download: its config, the model itself under a seed, and its processor."""

    config: Callable[[], Any]
    model: Callable[[int], Any]
    processor: Callable[[], Any]


def _from(package: str) -> Embedded:
    model, processor = (import_module(f"mote_quant.data.{package}.{part}") for part in ("model", "processor"))
    return Embedded(model.build_config, model.build_dense, processor.build_processor)


EMBEDDED = {"digits-vqa": "digits_vqa", "stdlib-text": "stdlib_text"}
"""Name -> package under `mote_quant.data`."""


def embedded(name: str) -> Embedded | None:
    """The embedded model of this name, or None."""
    return _from(EMBEDDED[name]) if name in EMBEDDED else None
