"""How a result was made: versions, recipe, seed. No times, so that equal runs give equal files."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from mote_quant.recipe import Recipe, dump
from mote_quant.version import __version__

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "datasets", "accelerate")


def provenance(recipe: Recipe, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What goes into an artifact: our version and commit, package versions, the resolved recipe, seed, fingerprints."""
    return versions() | {"recipe": dump(recipe), "seed": recipe.seed, "fingerprint": fingerprint}


def versions() -> dict[str, Any]:
    """Our version and commit, and those of the packages that decide results."""
    return {
        "mote_quant": __version__,
        "commit": _commit(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package runs from, or None when it is installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
