"""The sweeps that come with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_sweeps() -> dict[str, Path]:
    """Name -> file of every shipped sweep; in a wheel they lie inside the package, in a checkout under `eval`."""
    folders = (_PACKAGE / "sweeps" / "shipped", _PACKAGE.parent / "eval" / "sweeps")
    folder = next((folder for folder in folders if folder.is_dir()), folders[-1])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
