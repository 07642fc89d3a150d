"""From what a sweep says of its contenders to concrete recipes, which keep the places they were written at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mote_quant.recipe.located import Node, Problem
from mote_quant.recipe.near import did_you_mean
from mote_quant.recipe.schema import Recipe
from mote_quant.recipe.validate import validate
from mote_quant.sweeps.parts import Parts
from mote_quant.sweeps.schema import Contender, Sweep

TRAINING = "training"


@dataclass(frozen=True)
class Candidate:
    """One line of the table, before anything ran: a contender with its formats and number of experts.

    `recipe` is the whole of it, from the base model to the packed one, at the first seed and rate; `training` the part
    that all variants of a contender share (None: nothing is trained), `tail` what comes after it.
    """

    name: str
    family: str
    group: str
    recipe: Recipe
    training: Recipe | None
    tail: Recipe
    variant: str = ""
    experts: int | None = None

    @property
    def trained(self) -> str:
        """The name of the training it shares with its variants."""
        return self.family if self.experts is None else f"{self.family}-{self.experts}e"


def candidates(sweep: Sweep, tree: Node) -> tuple[tuple[Candidate, ...], list[Problem]]:
    """Everybody who may take part, in the order of the file, and what is wrong with them."""
    made: list[Candidate] = []
    problems: list[Problem] = []
    for family, contender in sweep.contenders.items():
        for variant in contender.variants or [""]:
            for experts in _numbers(contender):
                parts = Parts(sweep, tree, family, variant, experts)
                candidate, mistakes = _candidate(parts, contender)
                problems += mistakes
                made += [candidate] if candidate else []
    problems += _clashes(sweep, tree, made)
    return tuple(made), list(dict.fromkeys(problems))


def _clashes(sweep: Sweep, tree: Node, made: Sequence[Candidate]) -> Iterator[Problem]:
    """Two lines of one name, or pairs of lines that are not there."""
    for index, candidate in enumerate(made):
        for other in made[:index]:
            same = candidate.name == other.name
            if same or (candidate.trained == other.trained and candidate.family != other.family):
                what = candidate.name if same else candidate.trained
                text = f"{what} is what {other.family} makes too; give it another name"
                path = ("contenders", candidate.family)
                yield Problem(tree.nearest(path)[1].place, path, text)
    names = [candidate.name for candidate in made]
    for name, control in sweep.controls.items():
        for missing in [each for each in (name, control) if each not in names]:
            path = ("controls", name)
            hint = did_you_mean(missing, names) or f"; there are {', '.join(names)}"
            yield Problem(tree.nearest(path)[1].place, path, f"there is no line {missing}{hint}")


def _numbers(contender: Contender) -> Sequence[int | None]:
    return [None] if contender.experts is None else contender.experts


def with_run(recipe: Recipe, seed: int, rate: float) -> Recipe:
    """`recipe` at another seed and learning rate."""
    return _trained_with(recipe, {"learning_rate": rate}).model_copy(update={"seed": seed})


def with_teacher(recipe: Recipe, folder: str) -> Recipe:
    """`recipe` learning from the model in `folder`."""
    steps = [step.train.distill for step in recipe.pipeline if step.train and step.train.distill]
    return _trained_with(recipe, {"distill": steps[0].model_copy(update={"teacher": folder})}) if steps else recipe


def without_teacher(recipe: Recipe) -> Recipe:
    """`recipe` learning from its data alone."""
    return _trained_with(recipe, {"distill": None})


def _trained_with(recipe: Recipe, change: dict[str, Any]) -> Recipe:
    steps = [
        step.model_copy(update={"train": step.train.model_copy(update=change)}) if step.train else step
        for step in recipe.pipeline
    ]
    return recipe.model_copy(update={"pipeline": steps})


def teacher_of(recipe: Recipe | None) -> str | None:
    """Whom a training learns from: `@base`, `@contender`, a folder; None without distillation."""
    steps = recipe.pipeline if recipe is not None else []
    named = [step.train.distill.teacher for step in steps if step.train and step.train.distill]
    return named[0] if named else None


def _candidate(parts: Parts, contender: Contender) -> tuple[Candidate | None, list[Problem]]:
    name = parts.name
    whole, problems = validate(parts.tree(name, parts.bits(), [*parts.training(), parts.quantize()]))
    if not parts.bits():
        problems = [Problem(parts.own.place, ("contenders", parts.family), "gives no formats: add bits, or variants")]
    tail, _ = validate(parts.tree(name, parts.bits(), [parts.quantize()]))
    training, more = None, list[Problem]()
    if parts.training():
        # Without a name of its own: what is trained alike is trained once.
        training, more = validate(parts.tree(TRAINING, parts.entries("qat"), parts.training()))
    wrong = [*problems, *more, *parts.unfair()]
    if wrong or whole is None or tail is None:
        return None, wrong
    return Candidate(name, parts.family, contender.group, whole, training, tail, parts.variant, parts.experts), []
