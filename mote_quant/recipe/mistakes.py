"""How a validator of the schema says what is wrong and where, several things at once if need be.

pydantic keeps the locations of a `ValidationError` that is raised inside a validator, so these are raised as such.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

MISTAKE = "mistake"

Location = tuple[str | int, ...]
Mistake = tuple[Location, str]
"""Where, relative to the value that is being validated, and what."""


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise all `mistakes` at once; do nothing when there is none."""
    details = [InitErrorDetails(type=_in_words(text), loc=location, input=None) for location, text in mistakes]
    if details:
        raise ValidationError.from_exception_data("recipe", details)


def refuse_one(text: str) -> None:
    """Raise one mistake in the very value that is being validated."""
    refuse([((), text)])


def refuse_option(location: Location, value: Any, options: Iterable[str]) -> None:
    """Raise that `value` is none of `options`, as pydantic says it of a literal."""
    expected = ", ".join(repr(option) for option in options)
    detail = InitErrorDetails(type="literal_error", loc=location, input=value, ctx={"expected": expected})
    raise ValidationError.from_exception_data("recipe", [detail])


def refuse_keys(settings: Mapping[str, Any], known: Collection[str], missing: str) -> None:
    """Raise that the key `missing` is missing, and each key that is not `known`, as pydantic says it of a model."""
    unknown = [InitErrorDetails(type="extra_forbidden", loc=(key,), input=None) for key in settings if key not in known]
    lost = InitErrorDetails(type="missing", loc=(missing,), input=settings)
    raise ValidationError.from_exception_data("recipe", [lost, *unknown])


def _in_words(text: str) -> PydanticCustomError:
    return PydanticCustomError(MISTAKE, "{text}", {"text": text})
