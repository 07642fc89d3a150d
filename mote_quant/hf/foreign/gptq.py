"""GPTQ checkpoints (AutoGPTQ, gptqmodel, optimum), formats `gptq` and `gptq_v2`.

`qweight` int32 holds the codes packed along the inputs, [words, out]; `qzeros` the zero points packed along the
outputs, [groups, words], in `gptq` each less one; `scales` [groups, out]; `g_idx` the group of every input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mote_quant.errors import ArtifactError
from mote_quant.formats import Codes, TensorSpec
from mote_quant.formats.base import check_tensors
from mote_quant.formats.groups import count_groups
from mote_quant.hf.foreign.base import Layer, integer_name, require_runs, scale_name
from mote_quant.hf.foreign.words import pack_words, unpack_words, words_of
from mote_quant.hf.stored import WHERE, read
from mote_quant.recipe.scalars import GroupSize
from mote_quant.recipe.schema import IntegerBits

BITS = (2, 3, 4, 8)
PLAIN, V2 = "gptq", "gptq_v2"


class _Grid(BaseModel):
    """What may differ from layer to layer; `dynamic` overrides it by patterns of names."""

    model_config = ConfigDict(strict=True)

    bits: int
    group_size: GroupSize
    sym: bool = True


class _Override(BaseModel):
    model_config = ConfigDict(strict=True)

    bits: int | None = None
    group_size: GroupSize | None = None
    sym: bool | None = None


class _Settings(_Grid):
    """What of a `quantization_config` says how the tensors are to be read."""

    format: str | None = None
    checkpoint_format: str | None = None
    is_marlin_format: bool = False
    pack_dtype: str = "int32"
    dynamic: dict[str, _Override] | None = None

    @property
    def layout(self) -> str:
        """Under either of the names it goes by."""
        return "marlin" if self.is_marlin_format else self.checkpoint_format or self.format or PLAIN


@dataclass(frozen=True)
class Gptq:
    """`Reader` for `quant_method: gptq`."""

    settings: _Settings
    known: ClassVar[frozenset[str]] = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Gptq:
        """From a `quantization_config`; ArtifactError for a layout of the bits that is not read."""
        settings = read(_Settings, dict(values))
        if settings.layout not in (PLAIN, V2):
            raise ArtifactError(
                f"{WHERE}: GPTQ weights laid out as {settings.layout} cannot be read, only as {PLAIN} or {V2}; take "
                "the checkpoint that this one was converted from"
            )
        if settings.pack_dtype != "int32":
            raise ArtifactError(f"{WHERE}: codes packed in {settings.pack_dtype} cannot be read, only in int32")
        return cls(settings)

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """`qweight` stands in the place of a weight."""
        return "qweight" in tensors

    def spec(self, layer: Layer) -> IntegerBits:
        """Bits, groups and symmetry by the config, with what `dynamic` says of this layer."""
        grid = self._grid(layer)
        return IntegerBits(
            format=integer_name(grid.bits, layer, BITS),
            group_size=grid.group_size,
            symmetric=grid.sym,
            scale_dtype=scale_name(layer, "scales"),
            method="gptq",
        )

    def codes(self, layer: Layer) -> Codes:
        """As stored; the zero points of symmetric codes say that they are symmetric, and are not needed any more."""
        grid, tensors, (rows, columns) = self._grid(layer), layer.tensors, layer.shape
        groups = count_groups(grid.group_size, columns)
        layout = {
            "qweight": TensorSpec((words_of(columns, grid.bits), rows), torch.int32),
            "qzeros": TensorSpec((groups, words_of(rows, grid.bits)), torch.int32),
            "scales": TensorSpec((groups, rows), layer.tensor("scales").dtype),
        }
        check_tensors(tensors, layout)
        require_runs(tensors.get("g_idx"), grid.group_size, layer, "desc_act: true")
        codes = unpack_words(tensors["qweight"].t(), grid.bits, columns)
        zero = self._zero_points(tensors["qzeros"], grid.bits, rows).t()
        if not grid.sym:
            return Codes(codes, tensors["scales"].t(), zero)
        middle = 1 << (grid.bits - 1)
        if not bool((zero == middle).all()):
            raise ArtifactError(
                f"{layer.name}.qzeros: symmetric weights have zero points of {middle}, these are {int(zero.min())} to "
                f"{int(zero.max())}; the config is wrong in sym, or in checkpoint_format ({self.settings.layout})"
            )
        return Codes(codes.short() - middle, tensors["scales"].t())

    def _zero_points(self, words: Tensor, bits: int, count: int) -> Tensor:
        """uint8 [groups, out]."""
        if self.settings.layout == V2:
            return unpack_words(words, bits, count)
        if bits == 3:
            return (unpack_words(words, bits, count) + 1) % 8
        # Those who write these files subtract from whole words: a zero point of 0 borrows from the one beside it.
        one = pack_words(torch.ones(1, words.shape[1] * 32 // bits, dtype=torch.uint8), bits)
        return unpack_words(words + one.to(words.device), bits, count)

    def _grid(self, layer: Layer) -> _Grid:
        override = _override(self.settings.dynamic or {}, layer)
        return (
            self.settings
            if override is None
            else self.settings.model_copy(update=override.model_dump(exclude_none=True))
        )


def _override(dynamic: Mapping[str, _Override], layer: Layer) -> _Override | None:
    """The first that means the layer; patterns of layers left dense (`-:`) mean nothing for one that is not."""
    quantized = ((pattern.removeprefix("+:"), o) for pattern, o in dynamic.items() if not pattern.startswith("-:"))
    return next((o for pattern, o in quantized if layer.matches(pattern)), None)
