"""The fused experts of a transformers model: where they are, how they are laid out, and what of that we can take apart.

Known are `gate_up_proj` [E, 2 * inner, hidden] (or, without a gate, `up_proj` [E, inner, hidden]) and `down_proj`
[E, hidden, inner], or all of them transposed; the gate's rows first or in turn with those of up; with or without biases
`<name>_bias`. They are called with tokens, chosen experts and weights, or with all tokens for every expert.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor, nn

from mote_quant.anatomy.activation import is_activation
from mote_quant.anatomy.feedforward import expert_holders
from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import UnsupportedModelError

DOWN: Final = "down_proj"
_GATED, _PLAIN = "gate_up_proj", "up_proj"
_ROUTED_CALL, _WEIGHED_CALL = 3, 1
# What transformers declares of its experts classes: attribute, the value that is beyond us, and what it means.
_FLAGS = (
    ("has_post_expert_norm", True, "each expert's output is normed"),
    ("_is_expert_parallel", True, "the experts are spread over devices"),
)
Kind = Literal["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class FusedExperts:
    """One layer's fused experts: `first` is the parameter of gate and up, `activation` a child's name.

    `transposed`: weights are [E, in, out]. `interleaved`: gate and up take turns. `own_join`: the model has a
    method that joins them. `weighed`: every expert is given all tokens, times their weights.
    """

    path: str
    experts: int
    hidden: int
    inner: int
    first: str
    activation: str | None
    transposed: bool = False
    interleaved: bool = False
    bias: bool = False
    own_join: bool = False
    weighed: bool = False

    @property
    def gated(self) -> bool:
        """Whether `first` holds a gate beside the up projection."""
        return self.first == _GATED

    @property
    def linears(self) -> list[Kind]:
        """The linear layers of one expert, in the order of the forward pass."""
        return ["gate_proj", "up_proj", DOWN] if self.gated else ["up_proj", DOWN]

    def parts(self, fused: nn.Module, kind: Kind, index: int) -> tuple[Tensor, Tensor | None]:
        """The weight [out, in] and the bias of one linear layer of expert `index`: views of the fused parameters."""
        name = DOWN if kind == DOWN else self.first
        weight = fused.get_parameter(name)[index]
        bias = fused.get_parameter(f"{name}_bias")[index] if self.bias else None
        rows = self._rows(kind)
        weight = weight.t()[rows] if self.transposed else weight[rows]
        return weight, None if bias is None else bias[rows]

    def _rows(self, kind: Kind) -> slice:
        if kind == DOWN or not self.gated:
            return slice(None)
        second = kind == "up_proj"
        if self.interleaved:
            return slice(int(second), None, 2)
        return slice(self.inner, None) if second else slice(self.inner)


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
    transposed = _transposed(module)
    experts, hidden, inner = module.get_parameter(DOWN).shape
    if transposed:
        hidden, inner = inner, hidden
    return FusedExperts(
        path,
        experts,
        hidden,
        inner,
        _first(module),
        next(iter(_activations(module)), None),
        transposed,
        interleaved=getattr(module, "is_concatenated", True) is False,
        bias=_has_bias(module),
        own_join=_own_join(module),
        weighed=_arguments(module) == _WEIGHED_CALL,
    )


def _traits(module: nn.Module) -> Iterator[str]:
    yield from (words for flag, value, words in _FLAGS if getattr(module, flag, None) is value)
    yield from _shape_traits(module)
    if len(_activations(module)) != 1 and not _own_join(module):
        yield "there is no single activation module beside the weights"
    if getattr(module, "is_concatenated", True) is False and not _own_join(module):
        yield "gate and up rows are interleaved, but joined as if they were not"
    if _own_join(module) and _holds_more(module):
        yield "gate and up are joined in a way of the model's own that has tensors of its own"
    arguments = _arguments(module)
    if arguments not in (_ROUTED_CALL, _WEIGHED_CALL):
        given = ", ".join(inspect.signature(module.forward).parameters)
        yield f"they are called with {given}, not with tokens, chosen experts and weights"
    if arguments == _WEIGHED_CALL and _has_bias(module):
        yield "every expert is given all tokens, and there are biases"


def _shape_traits(module: nn.Module) -> Iterator[str]:
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    wanted = {_first(module), DOWN}
    if _has_bias(module):
        wanted |= {f"{name}_bias" for name in wanted}
    if set(shapes) != wanted:
        yield f"the weights are {', '.join(shapes)}, not {_GATED} (or {_PLAIN}) and {DOWN}"
        return
    if shapes[_first(module)] != _first_shape(module, _transposed(module)):
        yield f"{_first(module)} {list(shapes[_first(module)])} does not go with {DOWN} {list(shapes[DOWN])}"


def _first_shape(module: nn.Module, transposed: bool) -> tuple[int, int, int]:
    """The shape of gate and up that goes with that of the down projection."""
    experts, rows, columns = module.get_parameter(DOWN).shape
    doubled = 2 if _first(module) == _GATED else 1
    return (experts, columns, doubled * rows) if transposed else (experts, doubled * columns, rows)


def _transposed(module: nn.Module) -> bool:
    """As transformers declares it, or where it says nothing, as the shapes have it."""
    declared = getattr(module, "is_transposed", None)
    if declared is not None:
        return bool(declared)
    first = tuple(module.get_parameter(_first(module)).shape)
    return first == _first_shape(module, transposed=True) != _first_shape(module, transposed=False)


def _first(module: nn.Module) -> str:
    return _GATED if hasattr(module, _GATED) else _PLAIN


def _has_bias(module: nn.Module) -> bool:
    return any(name.endswith("_bias") for name, _ in module.named_parameters(recurse=False))


def _own_join(module: nn.Module) -> bool:
    """Whether what joins gate and up is the model's own, or holds an activation that is no module; it can be called."""
    joins = getattr(type(module), "_apply_gate", None)
    if joins is None or _first(module) != _GATED:
        return False
    return joins.__name__ != "_default_apply_gate" or not _activations(module)


def _holds_more(module: nn.Module) -> bool:
    inner = (parameter for child in module.children() for parameter in child.parameters())
    return next(inner, None) is not None or next(module.buffers(), None) is not None


def _arguments(module: nn.Module) -> int:
    """How many arguments the experts are called with: all that they take, or all that they must be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    required = sum(p.default is p.empty for p in parameters)
    return _ROUTED_CALL if required == _ROUTED_CALL else len(parameters)


def _activations(module: nn.Module) -> list[str]:
    return [name for name, child in module.named_children() if is_activation(child)]
