"""The scalar types of the schema, and what each of them refuses."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from mote_quant.recipe.mistakes import refuse, refuse_one
from mote_quant.recipe.targets import flaw

Item = TypeVar("Item", bound=Hashable)

LARGEST_SEED = 2**32 - 1  # the largest that numpy takes


def _number_without_dot(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text, because it has no dot; everybody who writes it means the number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value):
        return float(value)
    return value


def _readable(target: str) -> str:
    problem = flaw(target)
    if problem:
        refuse_one(problem)
    return target


def _positive_or_whole_row(size: int) -> int:
    if size < 1 and size != -1:
        refuse_one(f"must be at least 1, or -1 for the whole row, not {size}")
    return size


def _no_repeats(items: list[Item]) -> list[Item]:
    refuse(((index,), f"{item} is named twice") for index, item in enumerate(items) if item in items[:index])
    return items


Real = Annotated[float, BeforeValidator(_number_without_dot)]
Positive = Annotated[Real, Field(gt=0.0)]
NotNegative = Annotated[Real, Field(ge=0.0)]
Fraction = Annotated[Real, Field(ge=0.0, le=1.0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=2)]  # the first is only ever read, never predicted
LayerIndex = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
GroupSize = Annotated[int, AfterValidator(_positive_or_whole_row)]
Text = Annotated[str, Field(min_length=1)]
Target = Annotated[str, AfterValidator(_readable)]
Several = Annotated[list[Item], AfterValidator(_no_repeats), Field(min_length=1)]
