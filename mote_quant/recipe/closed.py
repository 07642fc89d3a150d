"""The ground every part of a recipe stands on: a closed model that refuses what it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from mote_quant.recipe.mistakes import Mistake, refuse


class Closed(BaseModel):
    """A frozen model that refuses unknown keys, guessed types, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def idle(self) -> dict[str, str]:
        """The settings that mean nothing beside the others -> what would give them a meaning."""
        return {}

    def clashes(self) -> Iterator[Mistake]:
        """The settings that cannot stand together."""
        yield from ()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        given = [(key, need) for key, need in self.idle().items() if key in self.model_fields_set]
        idle = [((key,), f"has a meaning only with {need}") for key, need in given]
        refuse([*idle, *self.clashes()])
        return self
