"""Finished models in the files of other runtimes: written whole, read back and compared."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from mote_quant.errors import RequestError
from mote_quant.recipe.near import near


class Exporter(Protocol):
    """Writes a model to a folder, whole or not at all."""

    def __call__(self, model: nn.Module, folder: Path, processor: Any = None) -> None:
        """Raises RequestError for a model that the format cannot hold, SaveError."""
        ...


EXPORTERS: Mapping[str, str] = {"gptq": "mote_quant.export.gptq"}
"""Name of a format -> the module whose `export` writes it."""


def exporter(name: str) -> Exporter:
    """What writes the format of that name. Raises RequestError."""
    if name not in EXPORTERS:
        meant = near(name, list(EXPORTERS), 1)
        hint = f"did you mean {meant[0]}?" if meant else f"choose {', '.join(EXPORTERS)}"
        raise RequestError(f"there is no export to {name}; {hint}")
    return cast(Exporter, import_module(EXPORTERS[name]).export)
