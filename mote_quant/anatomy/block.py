"""One feed-forward block, told by its structure: two or three linear layers of matching shapes and an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from mote_quant.anatomy.activation import is_activation
from mote_quant.anatomy.structure import linears


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block: `down(act(gate(x)) * up(x))` (`gated`) or `down(act(up(x)))` (`plain`).

    `path` is the block's module, or the decoder layer's for a block that lies in the layer itself (`inline`); `up`,
    `down`, `gate` and `activation` are names of its children; `layer` is the index of its decoder layer.
    """

    path: str
    kind: Literal["gated", "plain"]
    up: str
    down: str
    gate: str | None
    activation: str
    inline: bool
    layer: int
    hidden_size: int
    intermediate_size: int
    bias: bool

    @property
    def linears(self) -> dict[str, str]:
        """Part (`gate`, `up`, `down`) -> child name, without the parts the block lacks."""
        parts = {"gate": self.gate, "up": self.up, "down": self.down}
        return {part: name for part, name in parts.items() if name is not None}


def pair(module: nn.Module) -> tuple[list[str], str] | None:
    """The linear children that make a feed-forward: the one or two h -> i, and the i -> h; None if there are others."""
    shapes = linears(module)
    if len(shapes) not in (2, 3):
        return None
    for down in reversed(shapes):  # the last first: it decides where h equals i
        inner, hidden = shapes[down]
        ups = [name for name in shapes if name != down]
        if all(shapes[name] == (hidden, inner) for name in ups):
            return ups, down
    return None


def read_block(index: int, path: str, module: nn.Module, layer: str) -> FeedForward | str | None:
    """The block `module` is; a sentence on what it lacks when it comes close; None when it is something else.

    `path` is the module's, `layer` its decoder layer's, `index` the layer's number.
    """
    found = pair(module)
    if found is None:
        return _fused(path, module)
    ups, down = found
    columns, rows = linears(module)[down]
    activations = [name for name, child in module.named_children() if is_activation(child)]
    others = [name for name, child in module.named_children() if name not in (*ups, down) and _has_weights(child)]
    if not activations and columns == rows:
        return None  # an attention's projections
    if len(activations) != 1:
        count = "no activation module" if not activations else f"{len(activations)} activation modules"
        return f"{path} has the linear pair {', '.join(ups)} and {down}, but {count} beside it"
    if others and path != layer:
        return f"{path} has further weights beside its linear layers, in {', '.join(others)}"
    gate, up = _by_name(ups) if len(ups) == 2 else (None, ups[0])
    return FeedForward(
        path=path,
        kind="plain" if gate is None else "gated",
        up=up,
        down=down,
        gate=gate,
        activation=activations[0],
        inline=path == layer,
        layer=index,
        hidden_size=rows,
        intermediate_size=columns,
        bias=any(getattr(module.get_submodule(name), "bias", None) is not None for name in (*ups, down)),
    )


def _fused(path: str, module: nn.Module) -> str | None:
    shapes = linears(module)
    if len(shapes) != 2 or not any(is_activation(child) for child in module.children()):
        return None
    (first, (hidden, doubled)), (_, (inner, out)) = shapes.items()
    if out != hidden or doubled != 2 * inner:
        return None
    return f"gate and up are fused in one linear layer, {path}.{first} [{doubled}, {hidden}]"


def _by_name(ups: list[str]) -> tuple[str, str]:
    """(gate, up) of two like linear layers: the one called a gate, else the first."""
    gate = next((name for name in ups if "gate" in name), ups[0])
    return gate, next(name for name in ups if name != gate)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
