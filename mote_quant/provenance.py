"""How a result was made: versions, recipe, seed. No times, so that equal runs give equal files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mote_quant.recipe import Recipe, dump
from mote_quant.version import __version__

_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "datasets", "accelerate")


def provenance(recipe: Recipe, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What goes into an artifact: our version and commit, package versions, the resolved recipe, seed, fingerprints."""
    return versions() | {"recipe": dump(recipe), "seed": recipe.seed, "fingerprint": fingerprint}


def measured(notes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the steps of a run noted about their result on data, by names for people; {} where nothing was measured."""
    return {name: float(value) for note in notes for name, value in _noted(note) if value is not None}


def _noted(note: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "relative change of the outputs by up-cycling", (note.get("preservation") or {}).get("relative")
    yield "loss at the end of training", note["curve"][-1]["loss"] if note.get("curve") else None
    outputs = note.get("outputs") or {}
    yield "KL divergence from the model before quantizing, in nats", outputs.get("kl")
    yield "share of tokens predicted as before quantizing", outputs.get("agreement")


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
