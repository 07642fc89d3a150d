"""What a mixture layer looks like, as plain data: enough to build it again around a dense skeleton."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, PlainValidator, TypeAdapter

from mote_quant.anatomy.block import Fused
from mote_quant.recipe.bits import read_bits
from mote_quant.recipe.plain import settings
from mote_quant.recipe.scalars import Fraction, PositiveInt
from mote_quant.recipe.schema import QatBits, trains, wording

Projection = Literal["gate_proj", "up_proj", "down_proj"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

_PLAIN = {"fused": None, "function": None, "gate_scale": 1.0, "output_scale": 1.0, "residual": False, "norm": None}
"""What most blocks have of fields that came later: left out of files, so that earlier readers take them."""


def without_idle(spec: Any) -> Any:
    """A stored spec without the group size that means nothing beside its granularity, which the schema refuses."""
    if not isinstance(spec, dict) or spec.get("granularity", "group") == "group":
        return spec
    return {key: value for key, value in spec.items() if key != "group_size"}


def _read_trained(value: Any) -> QatBits:
    spec = read_bits(without_idle(value))
    if not trains(spec):
        raise ValueError(f"{wording(spec)} is not found by training")
    return spec


TrainedBits = Annotated[QatBits, PlainValidator(_read_trained)]


@dataclass(frozen=True)
class MoteLayout:
    """One mixture layer: where it stands, how it routes, how it mixes.

    `path` is the module the block takes the place of; `up`, `down`, `gate` and `activation` are the child names of the
    dense block (`inline`: of the decoder layer itself, which holds no feed-forward module of its own); `fused`,
    `function`, the scales, `residual` and `norm` are as `anatomy.block.FeedForward` has them. Tokens of which
    the router is less sure than `skip_below` are spared routed experts, in eval mode (see `router.thinned`). Experts
    have 1 / `split` of the dense width, or with `lora_rank` are changes of the shared expert of this rank.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    path: str
    kind: Literal["gated", "plain"]
    up: str
    down: str
    gate: str | None
    activation: str | None
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
    qat: dict[Projection, TrainedBits]
    skip_below: Fraction = 0.0
    split: PositiveInt = 1
    lora_rank: PositiveInt | None = None
    fused: Fused | None = None
    function: str | None = None
    gate_scale: float = 1.0
    output_scale: float = 1.0
    residual: bool = False
    norm: str | None = None

    def __post_init__(self) -> None:
        if self.top_k > self.experts:
            raise ValueError(f"{self.path}: top_k {self.top_k} of {self.experts} experts")
        if self.intermediate_size % self.split:
            raise ValueError(f"{self.path}: a width of {self.intermediate_size} cannot be split by {self.split}")
        if self.lora_rank is not None and (not self.shared or self.qat or self.combine != "additive"):
            raise ValueError(f"{self.path}: lora_rank is for full-precision changes of a shared expert")
        if (self.activation is None) == (self.function is None):
            raise ValueError(f"{self.path}: the activation is a child of the block, or a function")
        if self.norm is not None and self.split > 1:
            raise ValueError(f"{self.path}: {self.norm} norms the whole width, of which a split expert has a part")
        if self.fused is not None and self.gate != self.up:
            raise ValueError(f"{self.path}: fused gate and up are one layer")

    @property
    def expert_size(self) -> int:
        """The number of hidden units of one routed expert."""
        return self.intermediate_size // self.split

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what a later version added and this layer has not; `from_dict` is its inverse."""
        idle = {name for name, plain in _PLAIN.items() if getattr(self, name) == plain}
        values = {name: value for name, value in asdict(self).items() if name not in idle}
        values["qat"] = {projection: settings(spec) for projection, spec in self.qat.items()}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoteLayout:
        """The layout that `to_dict` described; ValueError (pydantic's) when it is none."""
        return TypeAdapter(cls).validate_json(json.dumps(values))
