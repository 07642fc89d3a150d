"""Rules between the parts of a recipe: what one part says only makes sense beside the others.

They read an `Outline`, which leaves out what could not be understood, so that a recipe with a slip elsewhere is still
checked, and a slip is not reported twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.roles import ROLES

Settings = Mapping[str, Any]
LOOKS_AT_SAMPLES = ("gptq", "awq")
TRAINED = ("ternary", "binary")


@dataclass(frozen=True)
class OutlineStep:
    """A step's verb and its settings with defaults; None stands for what could not be understood."""

    verb: str | None
    settings: Settings | None


@dataclass(frozen=True)
class Outline:
    """Those parts of a recipe that are sound by themselves. `whole_bits`: no entry of `bits` was left out."""

    bits: Mapping[str, Settings]
    steps: Sequence[OutlineStep]
    whole_bits: bool = True

    def lacks(self, verb: str) -> bool:
        """Whether surely no step has this verb."""
        return all(step.verb not in (verb, None) for step in self.steps)

    def where(self, verb: str) -> list[int]:
        """The places in the pipeline of the steps with this verb."""
        return [index for index, step in enumerate(self.steps) if step.verb == verb]

    def settings(self, verb: str) -> Iterator[tuple[int, Settings]]:
        """Place and settings of each step with this verb whose settings are sound."""
        for index, step in enumerate(self.steps):
            if step.verb == verb and step.settings is not None:
                yield index, step.settings


def broken_rules(outline: Outline) -> list[Mistake]:
    """Every rule that `outline` breaks, each with its place from the top of the recipe."""
    return [mistake for rule in RULES for mistake in rule(outline)]


def _once(outline: Outline) -> Iterator[Mistake]:
    for verb in ("upcycle", "quantize"):
        for index in outline.where(verb)[1:]:
            yield ("pipeline", index, verb), f"a second {verb} step; pipeline takes one"


def _quantize_is_last(outline: Outline) -> Iterator[Mistake]:
    for index in outline.where("quantize")[-1:]:
        if any(step.verb in ("upcycle", "train") for step in outline.steps[index + 1 :]):
            text = "quantize must be the last step of pipeline: packed weights cannot be trained or up-cycled"
            yield ("pipeline", index, "quantize"), text


def _bits_and_quantize_go_together(outline: Outline) -> Iterator[Mistake]:
    # What is trained is carried out by up-cycling or training alone: the model is then left to be trained on.
    idle = outline.lacks("upcycle") and outline.lacks("train")
    later = not all(_trained(bits) for bits in outline.bits.values()) or idle
    if outline.bits and outline.steps and outline.lacks("quantize") and later:
        yield ("bits",), "is given, but pipeline has no quantize step to carry it out; end it with `- quantize: {}`"
    if not outline.bits and outline.whole_bits:
        for index in outline.where("quantize"):
            yield ("pipeline", index, "quantize"), "has nothing to do: bits names no target"


def _trained(bits: Settings) -> bool:
    return bits["format"] in TRAINED or bits.get("method") == "qat"


def _some_methods_need_calibration(outline: Outline) -> Iterator[Mistake]:
    if any(settings["calibration"] is None for _, settings in outline.settings("quantize")):
        for target, bits in outline.bits.items():
            key = "format" if bits["format"] == "auto" else "method"
            if key == "format" or bits.get("method") in LOOKS_AT_SAMPLES:
                text = f"{bits[key]} looks at samples: give the quantize step a calibration, as in "
                text += "{data: ..., samples: 128}"
                yield ("bits", target, key), text


def _skipping_needs_calibration_and_a_choice(outline: Outline) -> Iterator[Mistake]:
    for index, settings in outline.settings("quantize"):
        where = ("pipeline", index, "quantize", "skip_rate")
        if settings["skip_rate"] and settings["calibration"] is None:
            yield where, "finds its thresholds on samples: give a calibration, as in {data: ..., samples: 128}"
        for _, upcycle in outline.settings("upcycle"):
            if settings["skip_rate"] and upcycle["shared"] == "none" and upcycle["top_k"] == 1:
                yield where, "would leave tokens without any expert: upcycle with shared: keep, or with top_k: 2"


def _experts_exist_before_they_train(outline: Outline) -> Iterator[Mistake]:
    upcycled = outline.where("upcycle")[:1]
    for index, settings in outline.settings("train"):
        if upcycled and index < upcycled[0]:
            for place, target in enumerate(settings["what"]):
                if target in ("routed", "router", "shared"):
                    text = f"there is no {target} yet: the upcycle step that makes it comes later in pipeline"
                    yield ("pipeline", index, "train", "what", place), text


def _shared_was_kept(outline: Outline) -> Iterator[Mistake]:
    if not any(settings["shared"] == "none" for _, settings in outline.settings("upcycle")):
        return
    text = "matches nothing: upcycle with shared: none keeps no shared expert"
    if "shared" in outline.bits:
        yield ("bits", "shared"), text
    for index, settings in outline.settings("train"):
        for place, target in enumerate(settings["what"]):
            if target == "shared" and index > outline.where("upcycle")[0]:
                yield ("pipeline", index, "train", "what", place), text


def _zero_init_trains_its_router(outline: Outline) -> Iterator[Mistake]:
    zero = [index for index, settings in outline.settings("upcycle") if settings["combine"] == "zero_init"]
    for index, step in enumerate(outline.steps):
        if not zero or index <= zero[0]:
            continue
        what = None if step.settings is None else step.settings.get("what", ())
        # Once the scale has moved, experts learn without the router too.
        if what is None or any(target == "router" or target not in ROLES for target in what):
            return
        if "routed" in what:
            text = "zero_init starts at scale 0, which only `router` moves: add router to what"
            yield ("pipeline", index, "train", "what"), text


RULES: tuple[Callable[[Outline], Iterator[Mistake]], ...] = (
    _once,
    _quantize_is_last,
    _bits_and_quantize_go_together,
    _some_methods_need_calibration,
    _skipping_needs_calibration_and_a_choice,
    _experts_exist_before_they_train,
    _shared_was_kept,
    _zero_init_trains_its_router,
)
