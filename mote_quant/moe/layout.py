"""What a mixture layer looks like, as plain data: enough to build it again around a dense skeleton."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter

from mote_quant.recipe.scalars import Fraction, PositiveInt
from mote_quant.recipe.schema import TernaryBits


def without_idle(spec: Any) -> Any:
    """A stored spec without the group size that means nothing beside its granularity, which the schema refuses."""
    if not isinstance(spec, dict) or spec.get("granularity", "group") == "group":
        return spec
    return {key: value for key, value in spec.items() if key != "group_size"}


@dataclass(frozen=True)
class MoteLayout:
    """One mixture layer: where it stands, how it routes, how it mixes.

    `path` is the module the block takes the place of; `up`, `down`, `gate` and `activation` are the child names of the
    dense block (`inline`: of the decoder layer itself, which holds no feed-forward module of its own). Tokens of which
    the router is less sure than `skip_below` are spared routed experts, in eval mode (see `router.thinned`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    path: str
    kind: Literal["gated", "plain"]
    up: str
    down: str
    gate: str | None
    activation: str
    inline: bool
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    bias: bool
    experts: PositiveInt
    top_k: PositiveInt
    shared: bool
    combine: Literal["additive", "convex", "zero_init"]
    mix: Fraction
    normalize_gates: bool
    ternary: Annotated[TernaryBits | None, BeforeValidator(without_idle)]
    skip_below: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise ValueError(f"{self.path}: top_k {self.top_k} of {self.experts} experts")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        values = asdict(self)
        values["ternary"] = None if self.ternary is None else self.ternary.model_dump()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoteLayout:
        """The layout that `to_dict` described; ValueError (pydantic's) when it is none."""
        return TypeAdapter(cls).validate_json(json.dumps(values))
