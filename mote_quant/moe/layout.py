"""What a mixture layer looks like, as plain data: enough to build it again around a dense skeleton."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mote_quant.recipe.schema import TernaryBits


@dataclass(frozen=True)
class MoteLayout:
    """One mixture layer: where it stands, how it routes, how it mixes.

    `path` is the module the block takes the place of; `up`, `down`, `gate` and `activation` are the child names of the
    dense block (`inline`: of the decoder layer itself, which holds no feed-forward module of its own).
    """

    path: str
    kind: str
    up: str
    down: str
    gate: str | None
    activation: str
    inline: bool
    hidden_size: int
    intermediate_size: int
    bias: bool
    experts: int
    top_k: int
    shared: bool
    combine: str
    mix: float
    normalize_gates: bool
    ternary: TernaryBits | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` is its inverse."""
        values = asdict(self)
        values["ternary"] = None if self.ternary is None else self.ternary.model_dump()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoteLayout:
        """The layout that `to_dict` described."""
        ternary = values["ternary"]
        return cls(**{**values, "ternary": None if ternary is None else TernaryBits.model_construct(**ternary)})
