"""`load_sweep`: a path, a shipped name or a mapping -> a Sweep and its candidates, or every mistake in it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mote_quant.errors import RecipeError
from mote_quant.recipe.explain import explain, unknown_key
from mote_quant.recipe.located import Node, Problem, UnusableError
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.near import did_you_mean
from mote_quant.recipe.overrides import override
from mote_quant.recipe.sources import gather
from mote_quant.recipe.wording import clip
from mote_quant.sweeps.candidates import Candidate, candidates
from mote_quant.sweeps.catalogue import shipped_sweeps
from mote_quant.sweeps.schema import Base, Contender, Measures, Sweep

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A sweep, and everybody who may take part in it."""

    sweep: Sweep
    candidates: tuple[Candidate, ...]


def load_sweep(source: Source, overrides: Sequence[str] = ()) -> Loaded:
    """Read a sweep; `overrides` are `path=value` texts. RecipeError holds one line a mistake, each with its place."""
    try:
        gathered = gather(_found(source))
    except UnusableError as error:
        raise RecipeError([str(error.problem)]) from error
    tree, unusable = override(gathered.tree, overrides)
    sweep, mistakes = _validated(tree)
    made: tuple[Candidate, ...] = ()
    if sweep is not None:
        made, mistakes = candidates(sweep, tree)
    problems = [*gathered.problems, *unusable, *mistakes]
    if sweep is None or problems:
        raise RecipeError([str(problem) for problem in dict.fromkeys(problems)])
    return Loaded(sweep, made)


def _found(source: Source) -> Source:
    if not isinstance(source, str | os.PathLike) or os.path.isfile(source):
        return source
    name = os.fsdecode(source)
    known = shipped_sweeps()
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    hint = did_you_mean(name, known, limit=3) or f"; shipped are {', '.join(known)}"
    raise RecipeError(f"there is no sweep {clip(name)}{hint}")


def _validated(tree: Node) -> tuple[Sweep | None, list[Problem]]:
    try:
        return Sweep.model_validate(tree.plain()), []
    except ValidationError as error:
        return None, [_problem(dict(finding), tree) for finding in error.errors(include_url=False)]


def _problem(finding: dict[str, Any], tree: Node) -> Problem:
    path: Location = finding["loc"]
    found, node = tree.nearest(path)
    if finding["type"] == "missing":
        return Problem(node.place, path, "missing key")
    if finding["type"] == "extra_forbidden":
        known = _known(path[:-1])
        taken = dict(tree.nearest(path[:-1])[1].children())
        return Problem(node.place, path, unknown_key(str(path[-1]), [key for key in known if key not in taken], known))
    return Problem(node.place, found, explain(finding["type"], finding.get("ctx", {}), node.value))


def _known(path: Location) -> list[str]:
    match path:
        case ("base",):
            return [*Base.model_fields]
        case ("measure",):
            return [*Measures.model_fields]
        case ("contenders", _):
            return [*Contender.model_fields]
    return [*Sweep.model_fields, "extends"]
