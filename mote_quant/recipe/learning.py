"""What a `train` step may be told about how to learn: from whom, how much to look before it leaps, when to stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from mote_quant.recipe.closed import Closed
from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.scalars import Fraction, NotNegative, Positive, PositiveInt, Real, Several, Text


class Distill(Closed):
    """A share `weight` of the loss is the distance from `teacher` (a model folder or a hub id) at `temperature`.

    `hidden` weighs a further loss: how far the states after each decoder layer, where there is a label, are from
    the teacher's, each by the size of the teacher's. `cache` is a folder for what the teacher says, so that it is asked
    once; with `top_k` only its so many likeliest words are kept, the others as one.
    """

    teacher: Text
    weight: Fraction = 0.5
    temperature: Positive = 1.0
    hidden: NotNegative = 0.0
    cache: Text | None = None
    top_k: PositiveInt | None = None

    def idle(self) -> dict[str, str]:
        """`top_k` where nothing is kept."""
        return {"top_k": "cache"} if self.cache is None else {}


class Guard(Closed):
    """A loss that is not finite, or more than `factor` times the median of the last `window` steps, is undone.

    The training goes back to the last checkpoint from before it, leaves that step's data out and lowers its rates to
    `cooling` of what they were; after `retries` of that it gives up.
    """

    factor: Annotated[Real, Field(gt=1.0)] = 3.0
    window: PositiveInt = 20
    retries: PositiveInt = 3
    cooling: Annotated[Real, Field(gt=0.0, le=1.0)] = 0.5


class Validation(Closed):
    """The loss on `samples` of the validation split, each `every` steps and at the end.

    With `patience` training stops after so many of these in a row without a lower one. `keep_best` ends with the
    weights that had the lowest.
    """

    every: PositiveInt = 50
    samples: PositiveInt = 64
    patience: PositiveInt | None = None
    keep_best: bool = True


class Search(Closed):
    """Before training, `steps` steps with each of `learning_rates` from the same start; the best one is taken.

    Best is the lowest loss on `samples` of the validation split; it takes the place of `learning_rate`, those of
    `learning_rates` stay as they are.
    """

    learning_rates: Several[Positive]
    steps: PositiveInt = 20
    samples: PositiveInt = 64

    def clashes(self) -> Iterator[Mistake]:
        """A search among one."""
        if len(self.learning_rates) < 2:
            yield ("learning_rates",), "a search needs at least two; a single one is learning_rate itself"


PARTS: dict[str, type[Closed]] = {"distill": Distill, "guard": Guard, "validation": Validation, "search": Search}
"""The mappings inside a `train` step."""
