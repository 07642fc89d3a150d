"""Group integers: how many bits, and how their codes are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from mote_quant.recipe.closed import Closed
from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.scalars import GroupSize, Positive, Real, Several, Text

IntegerName = Literal["int8", "int6", "int5", "int4", "int3", "int2"]
FloatName = Literal["float32", "bfloat16", "float16"]


class Rounding(Closed):
    """How group integers are found. `group_size` counts input columns that share a scale; -1 is the whole row.

    `uneven` says what becomes of a row that `group_size` does not divide: `pad` makes its last group a short one,
    `refuse` is an error. `clip: search` looks for the range of each group that loses least instead of taking the
    largest weight. `act_order` (the columns with the largest inputs first) and `damping` (of the Hessian, in parts of
    its mean diagonal) are gptq's. `qat` trains a weight for what rtn will make of it. `backend` is the library that
    finds the codes; `own` is mote-quant.
    """

    group_size: GroupSize = -1
    symmetric: bool = True
    scale_dtype: FloatName = "float16"
    method: Literal["rtn", "gptq", "awq", "hqq", "qat"] = "rtn"
    clip: Literal["none", "search"] = "none"
    act_order: bool = True
    damping: Annotated[Positive, Field(lt=1.0)] = 0.01
    uneven: Literal["pad", "refuse"] = "pad"
    backend: Literal["own", "gptqmodel", "llmcompressor", "bitsandbytes"] = "own"

    def idle(self) -> dict[str, str]:
        """Settings of one method beside another; `uneven` without groups."""
        idle = {} if self.group_size != -1 else {"uneven": "a group_size"}
        if self.method != "gptq":
            idle |= dict.fromkeys(("act_order", "damping"), "method: gptq")
        if self.method == "hqq":
            idle["clip"] = "method: rtn, gptq, awq or qat; hqq finds the range itself"
        if self.backend != "own":
            idle |= {"clip": "backend: own"}
        return idle

    def clashes(self) -> Iterator[Mistake]:
        """A method that the backend does not have."""
        methods = BACKEND_METHODS[self.backend]
        if self.method not in methods:
            yield ("backend",), f"{self.backend} has no {self.method}; it has {', '.join(methods)}"

    @property
    def scales_inputs(self) -> bool:
        """Whether a factor per input column is stored beside the codes (awq's)."""
        return self.method == "awq"

    @property
    def float_zeros(self) -> bool:
        """Whether zero points are stored in `scale_dtype`, between the codes, instead of as codes (hqq's)."""
        return self.method == "hqq" and not self.symmetric


BACKEND_METHODS = {
    "own": ("rtn", "gptq", "awq", "hqq", "qat"),
    "gptqmodel": ("gptq",),
    "llmcompressor": ("rtn", "gptq"),
    "bitsandbytes": ("rtn",),
}
BACKEND_FORMATS: dict[str, tuple[str, ...]] = {
    "own": get_args(IntegerName),
    "gptqmodel": get_args(IntegerName),
    "llmcompressor": get_args(IntegerName),
    "bitsandbytes": ("int8",),
}


class IntegerBits(Rounding):
    """Group integers of 8, 6, 5, 4, 3 or 2 bits."""

    format: IntegerName

    def clashes(self) -> Iterator[Mistake]:
        """A format that the backend does not have."""
        yield from super().clashes()
        formats = BACKEND_FORMATS[self.backend]
        if self.format not in formats:
            yield ("backend",), f"{self.backend} has no {self.format}; it has {', '.join(formats)}"
        if self.backend == "bitsandbytes" and (self.group_size != -1 or not self.symmetric):
            yield ("backend",), "bitsandbytes has int8 by whole rows only: group_size: -1 and symmetric: true"


class AutoBits(Rounding):
    """Integer formats found by calibration: each unit gets one of `choices`, all together within a budget.

    The budget is `average_bits` (of the codes, weighted by size, scales left out) or `budget` (bytes stored, scales
    included, as in "3.4GB"). `decide` is the unit: a `module` at a time, the projections of one `expert` together, or
    all that the rule covers in one `layer`. What a choice would do to the logits is predicted from calibration;
    `sensitivity: mc` weights the errors of experts once more by how often and how strongly they are chosen, as MC does.
    """

    format: Literal["auto"]
    choices: Annotated[Several[IntegerName], Field(default_factory=lambda: ["int2", "int3", "int4"])]
    average_bits: Annotated[Real, Field(gt=0.0, le=8.0)] | None = None
    budget: Text | None = None
    decide: Literal["module", "expert", "layer"] = "module"
    sensitivity: Literal["logits", "mc"] = "logits"

    def clashes(self) -> Iterator[Mistake]:
        """No budget, or two of them; nothing to choose from; a backend; a training."""
        yield from super().clashes()
        if (self.average_bits is None) == (self.budget is None):
            yield ("format",), "auto needs a budget: either average_bits or budget"
        if len(self.choices) < 2:
            yield ("choices",), "must be at least two formats, or there is nothing to decide"
        if self.backend != "own":
            yield ("backend",), "auto decides by mote-quant's own measurements: leave backend out"
        if self.method == "qat":
            yield ("method",), "auto decides when training is over, and qat trains for one format: name that format"

    @property
    def uniform(self) -> IntegerBits:
        """What a plan counts with before anything is decided: the largest choice within `average_bits`."""
        sizes = sorted((int(name.removeprefix("int")), name) for name in self.choices)
        within = [name for bits, name in sizes if bits <= (self.average_bits or 0.0)]
        return self.choice(within[-1] if within else sizes[0][1])

    def choice(self, format: str) -> IntegerBits:
        """The spec of one of the choices."""
        shared = self.model_dump(include=set(Rounding.model_fields) & self.model_fields_set)
        return IntegerBits.model_validate({"format": format, **shared})
