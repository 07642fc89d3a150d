"""Every weight a model holds, once, with its role."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mote_quant.anatomy.roles import roles
from mote_quant.anatomy.structure import join, linear_shape
from mote_quant.formats import format_for
from mote_quant.formats.floating import bits_of
from mote_quant.recipe.schema import Role
from mote_quant.recipe.targets import Candidate

LINEAR_WEIGHT = "weight"


@dataclass(frozen=True)
class Parameter:
    """A parameter or persistent buffer of a model, as its state dict holds it.

    `shape` and `dtype` are the stored tensor's. `count` is how many numbers of the model it holds: a packed weight
    counts out * in, its scales and zero points count 0. `bits` is what its format nominally takes for each of them
    (ternary 2, int4 4, bfloat16 16); a latent weight counts as what it is trained for. `matrix` tells weights (of
    linear layers, stacked experts, convolutions, embeddings) from vectors. `tied_to` is another name of the tensor.
    """

    name: str
    module: str
    module_class: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: str | None
    count: int
    bits: float
    matrix: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def candidate(self) -> Candidate:
        """What the target grammar sees of it."""
        return Candidate(self.name, self.module, self.module_class, self.role)


def inventory(model: nn.Module) -> list[Parameter]:
    """Every weight of `model` (meta or real), tied ones once: under the embedding's name, else under the first.

    Empty tensors (guards that hold a key on disk) are left out.
    """
    return [names[0] for names in _grouped(model)]


def aliases(model: nn.Module) -> list[Parameter]:
    """The further names of tied weights; `tied_to` is the name `inventory` lists the weight under."""
    return [alias for names in _grouped(model) for alias in names[1:]]


def _grouped(model: nn.Module) -> list[list[Parameter]]:
    """All names of each tensor, the canonical one first, each tied to the canonical one or that to its first alias."""
    groups: dict[int, list[Parameter]] = {}
    for tensor, parameter in _entries(model):
        groups.setdefault(id(tensor), []).append(parameter)
    return [_tied(sorted(names, key=lambda name: name.role != "embedding")) for names in groups.values()]


def _tied(names: list[Parameter]) -> list[Parameter]:
    if len(names) == 1:
        return names
    first, *others = names
    return [replace(first, tied_to=others[0].name), *(replace(other, tied_to=first.name) for other in others)]


def _entries(model: nn.Module) -> Iterator[tuple[Tensor, Parameter]]:
    role_of = roles(model)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in stored_tensors(module):
            if tensor.numel():
                yield tensor, _parameter(path, module, name, tensor, role_of(_owner(path, module, name)))


def stored_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters and persistent buffers by name: what it adds to a state dict."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _owner(path: str, module: nn.Module, name: str) -> str:
    """Where to look the role up: a module may declare roles for its own parameters too."""
    return join(path, name) if name in getattr(module, "parameter_roles", {}) else path


def _parameter(path: str, module: nn.Module, name: str, tensor: Tensor, role: Role) -> Parameter:
    count, bits = _nominal(module, name, tensor)
    return Parameter(
        name=join(path, name),
        module=path,
        module_class=type(module).__name__,
        role=role,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        tied_to=None,
        count=count,
        bits=bits,
        matrix=tensor.dim() >= 2 and count > 0,
    )


def _nominal(module: nn.Module, name: str, tensor: Tensor) -> tuple[int, float]:
    """(numbers, bits each) of a tensor; a linear layer with a `spec` is packed, or trains for being packed."""
    spec, shape = getattr(module, "spec", None), linear_shape(module)
    if spec is None or shape is None:
        return tensor.numel(), bits_of(tensor.dtype)
    if name == LINEAR_WEIGHT:
        return math.prod(shape), format_for(spec).paper_bits
    companion = name.startswith(f"{LINEAR_WEIGHT}_")
    return 0 if companion else tensor.numel(), bits_of(tensor.dtype)
