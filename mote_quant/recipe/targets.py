"""The target grammar: how a recipe says which parameters it means. The same everywhere, and the first match wins.

A target is a role (`routed`), a module class (`QatLinear`), a module or parameter name in which `*` stands for any
characters, dots too (`model.layers.*.mlp`), or `re:` and a regular expression searched for in module and parameter
names. A module stands for every parameter below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mote_quant.errors import TargetError
from mote_quant.recipe.near import did_you_mean, near
from mote_quant.recipe.roles import ROLES

EXPRESSION = "re:"


@dataclass(frozen=True)
class Candidate:
    """One parameter of a model, with all a target can ask about it."""

    name: str
    module: str
    module_class: str
    role: str


def matches(target: str, candidate: Candidate) -> bool:
    """Whether `target` means `candidate`. Raises TargetError for a regular expression that cannot be read."""
    if target in ROLES:
        return candidate.role == target
    pattern = _compiled(target)
    if target.startswith(EXPRESSION):
        return pattern.search(candidate.module) is not None or pattern.search(candidate.name) is not None
    return candidate.module_class == target or pattern.fullmatch(candidate.name) is not None


def select(target: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates `target` means, in order. Raises TargetError with near misses when there is none."""
    pool = list(candidates)
    chosen = [candidate for candidate in pool if matches(target, candidate)]
    if not chosen:
        raise TargetError(_no_match(target, pool))
    return chosen


def assign(targets: Sequence[str], candidates: Iterable[Candidate]) -> dict[str, str]:
    """Parameter name -> the first target that means it; parameters nobody means are left out.

    Raises TargetError, one line a target, for targets that match nothing and for targets that earlier ones leave
    nothing to.
    """
    pool = list(candidates)
    owner: dict[str, str] = {}
    problems: list[str] = []
    for target in targets:
        chosen = [candidate.name for candidate in pool if matches(target, candidate)]
        free = [name for name in chosen if name not in owner]
        if not chosen:
            problems.append(_no_match(target, pool))
        elif not free:
            earlier = dict.fromkeys(owner[name] for name in chosen)
            problems.append(f"target {target} never applies: all it matches is taken by {', '.join(earlier)} before it")
        owner.update(dict.fromkeys(free, target))
    if problems:
        raise TargetError("\n".join(problems))
    return owner


def flaw(target: str) -> str | None:
    """What is wrong with `target` as it is written, before any model is looked at; None when it can be read."""
    if not target.removeprefix(EXPRESSION).strip():
        return "an empty target names nothing"
    if target.startswith(EXPRESSION):
        try:
            re.compile(target.removeprefix(EXPRESSION))
        except (re.error, RecursionError, OverflowError) as error:
            return f"{target.removeprefix(EXPRESSION)} is not a regular expression: {error}"
    return None


@lru_cache(maxsize=1024)
def _compiled(target: str) -> re.Pattern[str]:
    problem = flaw(target)
    if problem:
        raise TargetError(f"target {target}: {problem}")
    if target.startswith(EXPRESSION):
        return re.compile(target.removeprefix(EXPRESSION))
    # The tail lets a module's name stand for every parameter below it.
    return re.compile(".*".join(map(re.escape, target.split("*"))) + r"(\..+)?", re.DOTALL)


def _no_match(target: str, candidates: Sequence[Candidate]) -> str:
    roles = sorted({candidate.role for candidate in candidates})
    if target in ROLES:
        return f"target {target} matches nothing: no parameter has this role; here are {', '.join(roles) or 'none'}"
    vocabulary = _vocabulary(candidates)
    hint = did_you_mean(target, vocabulary, limit=3)
    if not hint:
        parts = {part for candidate in candidates for part in candidate.name.split(".")}
        hint = _hint_by_words(target, parts)
    return f"target {target} matches no parameter{hint}"


def _vocabulary(candidates: Sequence[Candidate]) -> dict[str, None]:
    """All that could have been written: roles, classes, names, and parts of names, in that order."""
    words: dict[str, None] = dict.fromkeys(ROLES)
    for candidate in candidates:
        words[candidate.module_class] = words[candidate.module] = words[candidate.name] = None
        words.update(dict.fromkeys(candidate.name.split(".")))
    words.pop("", None)
    return words


def _hint_by_words(target: str, parts: Iterable[str]) -> str:
    """For patterns: compare the plain words inside them with the parts of parameter names."""
    pool = sorted(parts)
    unknown = [word for word in re.findall(r"[A-Za-z]\w{2,}", target.removeprefix(EXPRESSION)) if word not in pool]
    pairs = [f"{found[0]} for {word}" for word in unknown if (found := near(word, pool, 1))]
    return f"; did you mean {', '.join(pairs)}?" if pairs else ""
