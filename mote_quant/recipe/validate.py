"""A tree of located values -> a Recipe, or every mistake in it, each where it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mote_quant.recipe.explain import explain, meant_key, unknown_key
from mote_quant.recipe.learning import PARTS
from mote_quant.recipe.located import Node, Problem
from mote_quant.recipe.mistakes import Location
from mote_quant.recipe.rules import Outline, OutlineStep, broken_rules
from mote_quant.recipe.schema import FORMATS, STEPS, Bits, Calibration, PipelineStep, Recipe, Step

Finding = dict[str, Any]

_BITS: TypeAdapter[Any] = TypeAdapter(Bits)
_STEP: TypeAdapter[Any] = TypeAdapter(PipelineStep)


def validate(tree: Node, whole: bool = True) -> tuple[Recipe | None, list[Problem]]:
    """The recipe that `tree` spells, or none and its mistakes.

    Not `whole`: a base could not be read, so nothing that it may have held is called missing.
    """
    try:
        return Recipe.model_validate(tree.plain()), []
    except ValidationError as error:
        findings: list[Finding] = [dict(detail) for detail in error.errors(include_url=False)]
    between = [_problem(tree, path, text) for path, text in broken_rules(_outline(tree))]
    problems = [_explained(finding, tree) for finding in _worth_saying(findings, tree, whole)]
    if whole:
        return None, list(dict.fromkeys([*problems, *between]))
    return None, [problem for problem in problems if problem not in between]


def _problem(tree: Node, path: Location, text: str) -> Problem:
    found, node = tree.nearest(path)
    return Problem(node.place, found, text)


def _explained(finding: Finding, tree: Node) -> Problem:
    path: Location = finding["loc"]
    found, node = tree.nearest(path)
    if finding["type"] == "missing":
        return Problem(node.place, path, "missing key")
    if finding["type"] == "extra_forbidden":
        return Problem(node.place, path, unknown_key(str(path[-1]), _free(path[:-1], tree), _known(path[:-1], tree)))
    # What is left of the path beyond the tree is pydantic's: `[key]`, or the format that a bare name stands for.
    return Problem(node.place, found, explain(finding["type"], finding.get("ctx", {}), node.value))


def _worth_saying(findings: list[Finding], tree: Node, whole: bool) -> Iterator[Finding]:
    """Leave out what follows from something reported anyway: a broken value, a missing base, a misspelt key."""
    unknown = [finding["loc"] for finding in findings if finding["type"] == "extra_forbidden"]
    meant = {(*path[:-1], meant_key(str(path[-1]), _free(path[:-1], tree))) for path in unknown}
    for finding in findings:
        path, kind = finding["loc"], finding["type"]
        excused = kind == "missing" and (not whole or path in meant)
        if kind == "extra_forbidden" or not (excused or tree.nearest(path)[1].broken):
            yield finding


def _known(path: Location, tree: Node) -> list[str]:
    """The keys that the mapping at `path` can have."""
    match path:
        case ():
            return [*Recipe.model_fields, "extends"]
        case ("bits", _):
            name = tree.nearest((*path, "format"))[1].value
            kinds = [FORMATS[name]] if isinstance(name, str) and name in FORMATS else [*FORMATS.values()]
            return list(dict.fromkeys(key for kind in kinds for key in kind.model_fields))
        case ("pipeline", int()):
            return [*STEPS]
        case ("pipeline", int(), str(verb)) if verb in STEPS:
            return [*STEPS[verb].model_fields]
        case ("pipeline", int(), "train", str(part)) if part in PARTS:
            return [*PARTS[part].model_fields]
    return [*Calibration.model_fields]


def _free(path: Location, tree: Node) -> list[str]:
    """The keys that the mapping at `path` can have and has not."""
    taken = dict(tree.nearest(path)[1].children())
    return [key for key in _known(path, tree) if key not in taken]


def _outline(tree: Node) -> Outline:
    """What the rules may look at: the entries of `bits` and `pipeline` that are sound by themselves."""
    bits, pipeline = tree.child("bits"), tree.child("pipeline")
    entries = dict(bits.children()) if bits else {}
    sound = {target: spec for target, node in entries.items() if (spec := _sound(_BITS, node)) is not None}
    whole_bits = len(sound) == len(entries) and (bits is None or isinstance(bits.value, dict))
    steps = [_outline_step(node) for _, node in pipeline.children()] if pipeline else []
    return Outline({str(target): spec.model_dump() for target, spec in sound.items()}, steps, whole_bits)


def _outline_step(node: Node) -> OutlineStep:
    step: Step | None = _sound(_STEP, node)
    if step is not None:
        return OutlineStep(step.name, step.config.model_dump())
    verbs = [str(key) for key, _ in node.children() if key in STEPS]
    return OutlineStep(verbs[0] if len(verbs) == 1 else None, None)


def _sound(adapter: TypeAdapter[Any], node: Node) -> Any:
    """The part that `node` spells, or None if anything is wrong with it."""
    try:
        return adapter.validate_python(node.plain()) if _intact(node) else None
    except ValidationError:
        return None


def _intact(node: Node) -> bool:
    return not node.broken and all(_intact(child) for _, child in node.children())
