"""AWQ checkpoints laid out as `gemm` (AutoAWQ, gptqmodel; Lin et al., arXiv 2306.00978).

`qweight` int32 [in, words] and `qzeros` [groups, words] are packed along the outputs, those of 4 bits interleaved;
`scales` is [groups, out]. The factors that AWQ multiplied weights with lie folded into the layers before.
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
from mote_quant.hf.foreign.base import Layer, integer_name, scale_name
from mote_quant.hf.foreign.words import unpack_words, words_of
from mote_quant.hf.stored import WHERE, read
from mote_quant.recipe.scalars import GroupSize
from mote_quant.recipe.schema import IntegerBits

_GEMM = "gemm"
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of 4-bit codes, counted from its lowest bits, its eight outputs lie."""


class _Settings(BaseModel):
    """What of a `quantization_config` says how the tensors are to be read."""

    model_config = ConfigDict(strict=True)

    bits: int
    group_size: GroupSize
    zero_point: bool = True
    version: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None

    @property
    def layout(self) -> str:
        """Under any of the names it goes by."""
        return (self.checkpoint_format or self.format or self.version or _GEMM).lower()


@dataclass(frozen=True)
class Awq:
    """`Reader` for `quant_method: awq`."""

    settings: _Settings
    known: ClassVar[frozenset[str]] = frozenset({"qweight", "qzeros", "scales"})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Awq:
        """From a `quantization_config`; ArtifactError for a layout of the bits that is not read."""
        settings = read(_Settings, dict(values))
        if settings.layout != _GEMM:
            raise ArtifactError(
                f"{WHERE}: AWQ weights laid out as {settings.layout} cannot be read, only as {_GEMM}; take a "
                f"checkpoint in {_GEMM}"
            )
        return cls(settings)

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """`qweight` stands in the place of a weight."""
        return "qweight" in tensors

    def spec(self, layer: Layer) -> IntegerBits:
        """By the config alone: AWQ knows no exceptions but layers left dense."""
        return IntegerBits(
            format=integer_name(self.settings.bits, layer),
            group_size=self.settings.group_size,
            symmetric=not self.settings.zero_point,
            scale_dtype=scale_name(layer, "scales"),
        )

    def codes(self, layer: Layer) -> Codes:
        """As stored; without zero points in the config, those in the file must say that codes are symmetric."""
        bits, tensors, (rows, columns) = self.settings.bits, layer.tensors, layer.shape
        groups, words = count_groups(self.settings.group_size, columns), words_of(rows, bits)
        layout = {
            "qweight": TensorSpec((columns, words), torch.int32),
            "qzeros": TensorSpec((groups, words), torch.int32),
            "scales": TensorSpec((groups, rows), layer.tensor("scales").dtype),
        }
        check_tensors(tensors, layout)
        codes, zero = (_unpacked(tensors[name], bits, rows).t() for name in ("qweight", "qzeros"))
        if self.settings.zero_point:
            return Codes(codes, tensors["scales"].t(), zero)
        middle = 1 << (bits - 1)
        if not bool((zero == middle).all()):
            raise ArtifactError(f"{layer.name}.qzeros holds zero points, and the config says zero_point: false")
        return Codes(codes.short() - middle, tensors["scales"].t())


def _unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, words] -> uint8 codes [rows, count], in the order of the outputs."""
    codes = unpack_words(words, bits, count)
    return codes.view(len(words), -1, len(_PLACES))[..., list(_PLACES)].flatten(1) if bits == 4 else codes
