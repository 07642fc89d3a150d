"""One feed-forward block, told by its structure: linear layers of matching shapes and an activation."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from mote_quant.anatomy.activation import is_activation
from mote_quant.anatomy.structure import linears

Fused = Literal["gate_first", "up_first"]


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward block: `down(act(gate(x)) * up(x))` (`gated`) or `down(act(up(x)))` (`plain`).

    `path` is the block's module, or the decoder layer's for a block that lies in the layer itself (`inline`); `up`,
    `down`, `gate` and `activation` are names of its children; `layer` is the index of its decoder layer. One linear
    layer of twice the rows may be gate and up (`fused`: which half comes first). An activation that is no child is a
    `function` of transformers. The gate may be multiplied before the activation, the output at the end, and what enters
    down be normed by the child `norm`. A block that is called with hidden states and a `residual` adds that to its
    output.
    """

    path: str
    kind: Literal["gated", "plain"]
    up: str
    down: str
    gate: str | None
    activation: str | None
    inline: bool
    layer: int
    hidden_size: int
    intermediate_size: int
    bias: bool
    fused: Fused | None = None
    function: str | None = None
    gate_scale: float = 1.0
    output_scale: float = 1.0
    residual: bool = False
    norm: str | None = None

    @property
    def place(self) -> str:
        """The path of the module a mixture takes the place of."""
        return f"{self.path}.{self.up}" if self.inline else self.path

    @property
    def linears(self) -> dict[str, str]:
        """Part (`gate`, `up`, `down`) -> child name, without the parts the block lacks."""
        parts = {"gate": self.gate, "up": self.up, "down": self.down}
        return {part: name for part, name in parts.items() if name is not None}


@dataclass(frozen=True)
class Shapes:
    """Linear layers that make a feed-forward: `ups`, one or two, h -> i (`fused`: one, h -> 2i), and `down`, i -> h."""

    ups: tuple[str, ...]
    down: str
    hidden: int
    inner: int
    fused: bool = False

    @property
    def named(self) -> str:
        """The names of the layers, for messages."""
        return f"{', '.join(self.ups)} and {self.down}"


def pair(module: nn.Module) -> Shapes | None:
    """The linear children of `module` if they make a feed-forward; None if not, or if there are others."""
    shapes = linears(module)
    if len(shapes) not in (2, 3):
        return None
    for down in reversed(shapes):  # the last first: it decides where h equals i
        inner, hidden = shapes[down]
        ups = tuple(name for name in shapes if name != down)
        if all(shapes[name] == (hidden, inner) for name in ups):
            return Shapes(ups, down, hidden, inner)
        if len(ups) == 1 and shapes[ups[0]] == (hidden, 2 * inner):
            return Shapes(ups, down, hidden, inner, fused=True)
    return None


def read_block(index: int, path: str, module: nn.Module, layer: str) -> FeedForward | str | None:
    """The block `module` is; a sentence on what it lacks when it comes close; None when it is something else.

    `path` is the module's, `layer` its decoder layer's, `index` the layer's number. What is no child of the module, and
    which of two like linear layers is the gate, is for `mote_quant.anatomy.wiring`.
    """
    shapes = pair(module)
    if shapes is None:
        return None
    activations = [name for name, child in module.named_children() if is_activation(child)]
    if len(activations) > 1:
        return f"{path} has the linear pair {shapes.named}, but {len(activations)} activation modules beside it"
    if path == layer and (shapes.fused or len(shapes.ups) > 1):
        return f"{path} has a gate beside its linear pair ({shapes.named}), which only modules of their own may have"
    if not activations and path == layer:
        return without_activation(path, module)
    known = (*shapes.ups, shapes.down, *activations)
    others = [name for name, child in module.named_children() if name not in known and _has_weights(child)]
    norm = others[0] if len(others) == 1 and _norms(module.get_submodule(others[0]), shapes.inner) else None
    if others and not norm and path != layer:
        return f"{path} has further weights beside its linear layers, in {', '.join(others)}"
    block = _block(index, path, module, shapes, next(iter(activations), None), inline=path == layer)
    return replace(block, norm=norm if path != layer else None)


def without_activation(path: str, module: nn.Module) -> str | None:
    """What is to be said of linear layers that fit, with no activation to be found; nothing of an attention's."""
    shapes = pair(module)
    if shapes is None or shapes.hidden == shapes.inner:
        return None
    return f"{path} has the linear pair {shapes.named}, but no activation module beside it"


def _block(
    index: int, path: str, module: nn.Module, shapes: Shapes, activation: str | None, inline: bool
) -> FeedForward:
    gate, up = _by_name(shapes)
    return FeedForward(
        path=path,
        kind="plain" if gate is None else "gated",
        up=up,
        down=shapes.down,
        gate=gate,
        activation=activation,
        inline=inline,
        layer=index,
        hidden_size=shapes.hidden,
        intermediate_size=shapes.inner,
        bias=any(getattr(module.get_submodule(n), "bias", None) is not None for n in (*shapes.ups, shapes.down)),
        fused="gate_first" if shapes.fused else None,
        residual=not inline and _arguments(module) == 2,
    )


def _by_name(shapes: Shapes) -> tuple[str | None, str]:
    """(gate, up): of two like linear layers the one called a gate is it, else the first."""
    ups = shapes.ups
    if len(ups) == 1:
        return (ups[0] if shapes.fused else None), ups[0]
    gate = next((name for name in ups if "gate" in name), ups[0])
    return gate, next(name for name in ups if name != gate)


def _arguments(module: nn.Module) -> int:
    """How many arguments a call of the module cannot do without."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)


def _norms(module: nn.Module, width: int) -> bool:
    """Whether it holds nothing but vectors of `width` numbers."""
    return all(tensor.shape == (width,) for tensor in module.state_dict().values())


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
