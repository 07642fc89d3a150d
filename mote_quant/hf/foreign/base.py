"""What a reader of another library's checkpoint is: it finds the quantized layers and gives their codes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mote_quant.errors import ArtifactError
from mote_quant.formats import Codes
from mote_quant.formats.base import Shape
from mote_quant.formats.floating import DTYPES
from mote_quant.hf.stored import WHERE
from mote_quant.recipe.schema import FloatName, IntegerName, PackedBits

INTEGERS: Mapping[int, IntegerName] = {8: "int8", 6: "int6", 5: "int5", 4: "int4", 3: "int3", 2: "int2"}
_FLOATS: Mapping[torch.dtype, FloatName] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer as the files hold it.

    `name` is its name in the files, `module` its name in the model, `kinds` the class names it answers to, `shape`
    [out, in] that of its dense weight, `tensors` what is stored of it, memory-mapped, by the name below the layer's.
    """

    name: str
    module: str
    kinds: frozenset[str]
    shape: Shape
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        """What a pattern in a config may mean it by."""
        return tuple(dict.fromkeys((self.module, self.name)))

    def matches(self, pattern: str) -> bool:
        """Whether a regular expression of a config means it: from the start of its name, not to the end."""
        try:
            return any(re.match(pattern, name) for name in self.names)
        except re.error as error:
            raise ArtifactError(f"{WHERE}: the pattern {pattern} cannot be read ({error})") from error

    def tensor(self, name: str) -> Tensor:
        """One of its tensors; ArtifactError when it is missing."""
        if name not in self.tensors:
            raise ArtifactError(f"{self.name}.{name} is missing; copy or download the model again")
        return self.tensors[name]


class Reader(Protocol):
    """Reads the layers of one quantization method.

    Made from a `quantization_config`, with ArtifactError where that cannot be read. Methods raise ArtifactError, or
    FormatError for tensors that do not fit the layer. `known` is what the method may store of a layer beside its bias.
    """

    @property
    def known(self) -> Collection[str]:
        """Names below the layer's."""
        ...

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a module of which these tensors are stored is quantized."""
        ...

    def spec(self, layer: Layer) -> PackedBits:
        """The format that holds the layer's codes; told without reading them."""
        ...

    def codes(self, layer: Layer) -> Codes:
        """The layer's codes, scales and zero points, exactly as stored, in our convention."""
        ...


def integer_name(bits: int, layer: Layer, readable: Collection[int] = tuple(INTEGERS)) -> IntegerName:
    """What a recipe calls integers of that many bits."""
    if bits not in readable:
        known = ", ".join(map(str, sorted(readable)))
        raise ArtifactError(f"{layer.name} has codes of {bits} bits, which cannot be read; readable are {known} bits")
    return INTEGERS[bits]


def scale_name(layer: Layer, name: str) -> FloatName:
    """What a recipe calls the type of the layer's scales, the tensor `name`."""
    dtype = layer.tensor(name).dtype
    if dtype not in _FLOATS:
        raise ArtifactError(f"{layer.name}.{name}: scales of type {dtype} cannot be read, only {', '.join(DTYPES)}")
    return _FLOATS[dtype]


def require_runs(groups: Tensor | None, group_size: int, layer: Layer, setting: str) -> None:
    """ArtifactError unless `groups` (the group of every input; None says so) are runs of `group_size` inputs."""
    if groups is None:
        return
    width = len(groups) if group_size == -1 else group_size
    if not torch.equal(groups.long(), torch.arange(len(groups)) // width):
        raise ArtifactError(
            f"{layer.name} was quantized with {setting}: the inputs that share a scale are scattered over the row, "
            "which mote-quant has no format for. Take a checkpoint made without it, or the full-precision weights"
        )
