"""From what a sweep says of its contenders to concrete recipes, which keep the places they were written at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mote_quant.recipe.located import Node, Place, Problem
from mote_quant.recipe.merge import merge
from mote_quant.recipe.near import did_you_mean
from mote_quant.recipe.schema import Recipe
from mote_quant.recipe.validate import validate
from mote_quant.sweeps.schema import Contender, Sweep

MADE = Place("<sweep>")
MIXTURE_ROLES = ("routed", "router", "shared")
TRAINING = "training"
NOBODYS = {"learning_rate": "it is chosen from the sweep's learning_rates", "data": "it is the sweep's data"}
EVERYBODYS = ("steps", "batch_size", "gradient_accumulation", "schedule", "warmup", "max_length")


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
                parts = _Parts(sweep, tree, family, variant, experts)
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


def _candidate(parts: _Parts, contender: Contender) -> tuple[Candidate | None, list[Problem]]:
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


@dataclass(frozen=True)
class _Parts:
    """The pieces of one candidate, as located nodes."""

    sweep: Sweep
    whole: Node
    family: str
    variant: str
    experts: int | None

    @property
    def own(self) -> Node:
        return _at(self.whole, "contenders", self.family)

    @property
    def name(self) -> str:
        parts = [self.family, "" if self.experts is None else f"{self.experts}e", self.variant]
        return "-".join(part for part in parts if part)

    def entries(self, key: str) -> dict[str, Node]:
        return _mapping(self.own, key)

    def bits(self) -> dict[str, Node]:
        """The first match wins: what is trained so, then the variant's, the contender's, the sweep's."""
        chosen = _mapping(self.own, "variants", self.variant) if self.variant else {}
        return _first_wins(self.entries("qat"), chosen, self.entries("bits"), self.common())

    def common(self) -> dict[str, Node]:
        """The sweep's own formats, for the roles that this contender has."""
        upcycle = self.own.child("upcycle")
        absent = MIXTURE_ROLES if upcycle is None else ("shared",) if _says_none(upcycle) else ()
        return {target: node for target, node in _mapping(self.whole, "bits").items() if target not in absent}

    def training(self) -> list[Node]:
        """The steps before quantization."""
        steps = []
        if self.own.child("upcycle") is not None:
            upcycle = self.entries("upcycle") | ({} if self.experts is None else {"experts": _node(self.experts)})
            steps.append(_step("upcycle", upcycle, self.own))
        if self.own.child("train") is not None:
            merged = merge(_at(self.own, "train"), _at(self.whole, "train"))
            fixed = {"data": _node(self.sweep.data), "learning_rate": _node(self.sweep.learning_rates[0])}
            steps.append(_step("train", fixed | dict(merged.value or {}), self.own))
        return steps

    def unfair(self) -> Iterator[Problem]:
        """What all contenders share, and none may say for itself."""
        own = ("contenders", self.family)
        for path in (("train",), (*own, "train")):
            for key, node in _mapping(self.whole, *path).items():
                if key in NOBODYS:
                    yield Problem(node.place, (*path, key), f"cannot be set here: {NOBODYS[key]}")
                elif key in EVERYBODYS and len(path) > 1:
                    yield Problem(node.place, (*path, key), "is the same for everybody: set it in the sweep's train")
        for place in (("quantize", "calibration"), (*own, "quantize", "calibration")):
            for key, node in _mapping(self.whole, *place).items():
                if key == "data":
                    yield Problem(node.place, (*place, key), f"cannot be set here: {NOBODYS[key]}")
                elif key == "max_length" and node.value != self.sweep.train.get("max_length"):
                    yield Problem(node.place, (*place, key), "is that of the sweep's train: samples are cut once")

    def quantize(self) -> Node:
        """The last step; no report on logits is made here, `measure` says more of them."""
        merged = dict(merge(_at(self.own, "quantize"), _at(self.whole, "quantize")).value or {})
        calibration = merged.get("calibration")
        if calibration is not None and isinstance(calibration.value, dict):
            length = self.sweep.train.get("max_length")
            seen = {"data": _node(self.sweep.data)} | ({} if length is None else {"max_length": _node(length)})
            merged["calibration"] = Node({**seen, **calibration.value}, calibration.place)
        return _step("quantize", {"measure": _node("none"), **merged}, self.own)

    def tree(self, name: str, bits: Mapping[str, Node], steps: list[Node]) -> Node:
        entries = {"name": _node(name), "seed": _node(self.sweep.seeds[0]), "bits": Node(dict(bits), self.own.place)}
        return Node({**entries, "pipeline": Node(steps, self.own.place)}, self.own.place)


def _says_none(upcycle: Node) -> bool:
    shared = upcycle.child("shared")
    return shared is not None and shared.value == "none"


def _first_wins(*rules: Mapping[str, Node]) -> dict[str, Node]:
    merged: dict[str, Node] = {}
    for each in rules:
        merged |= {target: node for target, node in each.items() if target not in merged}
    return merged


def _mapping(node: Node, *path: str) -> dict[str, Node]:
    value = _at(node, *path).value
    return dict(value) if isinstance(value, dict) else {}


def _at(node: Node, *path: str) -> Node:
    """The node at `path`, or an empty mapping in its place."""
    for key in path:
        below = node.child(key)
        if below is None or below.value is None:
            return Node({}, node.place)
        node = below
    return node


def _step(verb: str, settings: Mapping[str, Node], own: Node) -> Node:
    return Node({verb: Node(dict(settings), own.place)}, own.place)


def _node(value: Any) -> Node:
    return Node(value, MADE)
