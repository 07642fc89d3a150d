"""What a shell offers at a press of tab. Fast: nothing here imports torch or transformers, or looks at the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

_RECIPE_FILES = (".yaml", ".yml")
_DATA_FILES = (".txt", ".jsonl", ".json", ".parquet")
_CONFIG_FILES = (".json",)


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes, then YAML files and folders."""
    from mote_quant.recipe.catalogue import shipped

    return [*_starting(incomplete, shipped()), *_files(incomplete, _RECIPE_FILES)]


def sweeps(incomplete: str) -> list[str]:
    """Shipped sweeps, then YAML files and folders."""
    from mote_quant.sweeps.catalogue import shipped_sweeps

    return [*_starting(incomplete, shipped_sweeps()), *_files(incomplete, _RECIPE_FILES)]


def models(incomplete: str) -> list[str]:
    """Embedded models, models whose sizes are known (they can be planned for), folders and config files."""
    from mote_quant.data.embedded import EMBEDDED
    from mote_quant.memory import facts

    return [*_starting(incomplete, [*EMBEDDED, *facts.names()]), *_files(incomplete, _CONFIG_FILES)]


def data(incomplete: str) -> list[str]:
    """Embedded data, folders and data files."""
    from mote_quant.data.embedded import EMBEDDED

    return [*_starting(incomplete, EMBEDDED), *_files(incomplete, _DATA_FILES)]


def settings(context: typer.Context, incomplete: str) -> list[str]:
    """Every `path=` that --set can take in the recipe that stands on the command line."""
    from mote_quant.errors import RecipeError
    from mote_quant.recipe import load

    # An option that still wants its value leaves what stands before it unread.
    given = context.params.get("recipe") or next(iter(context.args), "")
    try:
        recipe = load(given)
    except RecipeError:
        return []
    keys = [f"{key}=" for key in ("name", "description", "model", "seed")]
    for target, spec in recipe.bits.items():
        keys += [f"bits.{target}=", *(f"bits.{target}.{field}=" for field in type(spec).model_fields)]
    for index, step in enumerate(recipe.pipeline):
        keys += [f"pipeline.{index}.{step.name}.{field}=" for field in type(step.config).model_fields]
    return _starting(incomplete, keys)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """Names that go on from what is typed."""
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Folders, and files of these kinds, whose path goes on from what is typed."""
    typed, _, start = incomplete.rpartition("/")
    folder = Path(f"{typed}/") if "/" in incomplete else Path()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        hidden = path.name.startswith(".") and not start.startswith(".")
        if path.name.startswith(start) and not hidden and (path.is_dir() or path.suffix in suffixes):
            prefix = f"{typed}/" if "/" in incomplete else ""
            yield f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
