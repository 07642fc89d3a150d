"""`load`: whatever names a recipe -> a Recipe, or one RecipeError with every mistake in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mote_quant.errors import RecipeError
from mote_quant.recipe.located import Problem, UnusableError
from mote_quant.recipe.overrides import override
from mote_quant.recipe.schema import Recipe
from mote_quant.recipe.sources import gather
from mote_quant.recipe.validate import validate

Source = str | os.PathLike[str] | Mapping[str, Any] | Recipe


def load(source: Source, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `source` names: a path, a shipped name (`mote-digits`), a mapping or a Recipe.

    `overrides` are `path=value` texts as `--set` takes them; an override goes before the file, the file before the
    recipe it extends. Raises RecipeError whose `problems` are one line a mistake: place, path, what is wrong.
    """
    if isinstance(source, Recipe) and not overrides:
        return source
    try:
        gathered = gather(source)
    except UnusableError as error:
        raise RecipeError([str(error.problem)]) from error
    tree, unusable = override(gathered.tree, overrides)
    recipe, mistakes = validate(tree, gathered.whole)
    problems = [*gathered.problems, *unusable, *mistakes]
    if recipe is None or problems:
        raise RecipeError([str(problem) for problem in _in_order(problems)])
    return recipe


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Each source by itself, in the order they come up, and from top to bottom."""
    sources = list(dict.fromkeys(problem.place.source for problem in problems))
    return sorted(problems, key=lambda problem: (sources.index(problem.place.source), problem.place.line or 0))
