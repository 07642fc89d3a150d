"""The fused experts of a transformers model: where they are, how they are laid out, and what of that we can take apart.

Known is the layout most families share: `gate_up_proj` [E, 2 * inner, hidden] with the gate's rows first (or, without a
gate, `up_proj` [E, inner, hidden]) and `down_proj` [E, hidden, inner], called with tokens, chosen experts and weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from mote_quant.anatomy.activation import is_activation
from mote_quant.anatomy.feedforward import expert_holders
from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import UnsupportedModelError

DOWN = "down_proj"
_GATED, _PLAIN = "gate_up_proj", "up_proj"
_ARGUMENTS = 3
# What transformers declares of its experts classes: attribute, the value that is beyond us, and what it means.
_FLAGS = (
    ("is_concatenated", False, "gate and up rows are interleaved"),
    ("has_bias", True, "there are biases"),
    ("has_post_expert_norm", True, "each expert's output is normed"),
    ("_is_expert_parallel", True, "the experts are spread over devices"),
)


@dataclass(frozen=True)
class FusedExperts:
    """One layer's fused experts: `first` is the parameter of gate and up, `activation` a child's name."""

    path: str
    experts: int
    hidden: int
    inner: int
    first: str
    activation: str

    @property
    def gated(self) -> bool:
        """Whether `first` holds a gate above the up projection."""
        return self.first == _GATED

    @property
    def linears(self) -> list[str]:
        """The linear layers of one expert, in the order of the forward pass."""
        return ["gate_proj", "up_proj", DOWN] if self.gated else ["up_proj", DOWN]


def fused_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of a decoder layer that holds experts as 3-D parameters, by its path."""
    holders = (path for name, layer in decoder_layers(model) for path in expert_holders(name, layer))
    modules = {path: model.get_submodule(path) for path in holders}
    return {path: module for path, module in modules.items() if any(map(_stacks, module.parameters(recurse=False)))}


def _stacks(parameter: nn.Parameter) -> bool:
    # One without numbers guards the name of a parameter that was taken apart.
    return parameter.dim() == 3 and parameter.numel() > 0


def read_fused(path: str, module: nn.Module) -> FusedExperts:
    """How the experts of `module` are laid out; UnsupportedModelError with every trait that is beyond us."""
    traits = list(dict.fromkeys(_traits(module)))
    if traits:
        raise UnsupportedModelError(
            f"the experts of {path} ({type(module).__name__}) cannot be quantized one by one: {'; '.join(traits)}. "
            "Leave them out of `bits`, or give them the float type that the model computes in"
        )
    first, down = _first(module), module.get_parameter(DOWN)
    experts, hidden, inner = down.shape
    return FusedExperts(path, experts, hidden, inner, first, _activations(module)[0])


def _traits(module: nn.Module) -> Iterator[str]:
    yield from (words for flag, value, words in _FLAGS if getattr(module, flag, None) is value)
    yield from _shape_traits(module)
    joins = getattr(type(module), "_apply_gate", None)
    if joins is not None and joins.__name__ != "_default_apply_gate":
        yield "gate and up are joined in a way of the model's own"
    if len(_activations(module)) != 1:
        yield "there is no single activation module beside the weights"
    required = [p.name for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    if len(required) != _ARGUMENTS:
        yield f"they are called with {', '.join(required)}, not with tokens, chosen experts and weights"


def _shape_traits(module: nn.Module) -> Iterator[str]:
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    first = shapes.get(_first(module))
    if any(name.endswith("bias") for name in shapes):
        yield "there are biases"
    elif first is None or set(shapes) != {_first(module), DOWN}:
        yield f"the weights are {', '.join(shapes)}, not {_GATED} (or {_PLAIN}) and {DOWN}"
    if first is None or DOWN not in shapes:
        return
    experts, hidden, inner = shapes[DOWN]
    doubled = 2 if _first(module) == _GATED else 1
    fits = first == (experts, doubled * inner, hidden)
    if getattr(module, "is_transposed", False) or (not fits and first == (experts, inner, doubled * hidden)):
        yield "the weights are transposed, [E, in, out]"
    elif not fits:
        yield f"{_first(module)} {list(first)} does not go with {DOWN} {list(shapes[DOWN])}"


def _first(module: nn.Module) -> str:
    return _GATED if hasattr(module, _GATED) else _PLAIN


def _activations(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if is_activation(child)]
