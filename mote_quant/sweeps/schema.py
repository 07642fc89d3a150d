"""A sweep: one base model, one data set, the same training for everybody, and who competes.

A closed schema like the recipe's. What a contender says of `upcycle`, `train`, `quantize` and `bits` is a recipe's; it
is checked when the sweep's recipes are made of it (`candidates.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from mote_quant.recipe.closed import Closed
from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.scalars import Positive, PositiveInt, Seed, Several, Text

Settings = dict[Text, Any]
Accounting = Literal["stored", "paper", "resident"]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_RELATIVE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*x", re.ASCII)
Name = Annotated[str, Field(pattern=_NAME)]


class Base(Closed):
    """The dense model that every contender starts from; `recipe` trains it first, once."""

    model: Text
    recipe: Text | None = None
    settings: list[Text] = Field(default_factory=list)
    seed: Seed = 0

    def clashes(self) -> Iterator[Mistake]:
        """Settings of a recipe that is not there."""
        if self.settings and self.recipe is None:
            yield ("settings",), "has a meaning only with recipe"


class Contender(Closed):
    """One training and what becomes of it: each of `variants` (or `bits` alone) is a line of the table.

    `group` is what headlines speak of. `qat` are the formats that training itself produces, `bits` and `variants` those
    given afterwards. `experts` lists numbers of experts: of each budget, the largest number that fits takes part.
    """

    group: Text
    upcycle: Settings | None = None
    experts: Several[PositiveInt] | None = None
    train: Settings | None = None
    qat: Settings = Field(default_factory=dict)
    bits: Settings = Field(default_factory=dict)
    variants: dict[Name, Settings] = Field(default_factory=dict)
    quantize: Settings = Field(default_factory=dict)

    def idle(self) -> dict[str, str]:
        """Numbers of experts without a mixture; formats found by training without one."""
        need = {"experts": "upcycle", "qat": "upcycle"}
        return need if self.upcycle is None else {}


class Measures(Closed):
    """What is measured: `samples` limits the test split for the score, `compared` that for KL and agreement."""

    samples: PositiveInt | None = None
    compared: PositiveInt | None = 128
    speed: bool = True


class Sweep(Closed):
    """A whole sweep. Budgets and byte counts are those of the feed-forward experts, in the accounting of `match`.

    A budget is a size (`3.4GB`) or relative to the dense feed-forward blocks in bfloat16 (`0.75x`). `heldout` is data
    to measure on instead of the test split of `data`. `learning_rates` is the grid that every trained contender chooses
    from, by validation loss with the first seed. `controls` pairs lines that differ in one thing only: line -> the line
    without it.
    """

    name: Name
    description: str = ""
    base: Base
    data: Text
    heldout: Text | None = None
    tasks: list[Text] = Field(default_factory=list)
    task_limit: PositiveInt | None = None
    seeds: Several[Seed] = Field(default_factory=lambda: [0, 1, 2])
    score: Text = "loss"
    higher_is_better: bool | None = None
    match: Accounting = "stored"
    budgets: list[Text] = Field(default_factory=list)
    learning_rates: Several[Positive] = Field(default_factory=lambda: [1.0e-3])
    train: Settings = Field(default_factory=dict)
    quantize: Settings = Field(default_factory=dict)
    bits: Settings = Field(default_factory=dict)
    measure: Measures = Field(default_factory=Measures)
    ours: Text = "MoTE"
    controls: dict[Text, Text] = Field(default_factory=dict)
    contenders: Annotated[dict[Name, Contender], Field(min_length=1)]

    def clashes(self) -> Iterator[Mistake]:
        """Budgets that are no sizes; headlines about nobody."""
        from mote_quant.errors import RequestError
        from mote_quant.sweeps.report.metrics import direction

        for index, budget in enumerate(self.budgets):
            try:
                budget_bytes(budget, 1 << 40)
            except RequestError as error:
                yield ("budgets", index), str(error)
        if self.higher_is_better is None and direction(self.score) is None:
            yield (
                ("score",),
                f"{self.score} is no metric whose better end is known: say higher_is_better: true or false",
            )
        groups = sorted({contender.group for contender in self.contenders.values()})
        if "ours" in self.model_fields_set and self.ours not in groups:
            yield ("ours",), f"no contender is of group {self.ours}; there are {', '.join(groups)}"

    @property
    def rising(self) -> bool:
        """Whether a larger score is a better one."""
        from mote_quant.sweeps.report.metrics import direction

        known = direction(self.score)
        return bool(known if self.higher_is_better is None else self.higher_is_better)


def budget_bytes(text: str, dense: int) -> int:
    """`3.4GB` or `0.75x` (of `dense` bytes) -> bytes. RequestError for anything else."""
    from mote_quant.errors import RequestError
    from mote_quant.memory.units import parse_bytes

    relative = _RELATIVE.fullmatch(text.strip())
    if relative is None:
        return parse_bytes(text)
    size = int(float(relative[1]) * dense)
    if size < 1:
        raise RequestError(f"{text!r} is not a size: it must be at least one byte")
    return size
