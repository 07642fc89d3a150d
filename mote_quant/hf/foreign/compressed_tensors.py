"""compressed-tensors checkpoints (llm-compressor) of integer weights: `pack-quantized`, `int-` and `naive-quantized`.

Codes are signed and stand for (code - zero point) * scale. Packed, `weight_packed` int32 [out, words] and
`weight_zero_point` [words, groups] hold them less their minimum; else `weight` and `weight_zero_point` are int8.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from mote_quant.errors import ArtifactError
from mote_quant.formats import Codes, TensorSpec
from mote_quant.formats.base import check_tensors
from mote_quant.hf.foreign.base import Layer, integer_name, require_runs, scale_name
from mote_quant.hf.foreign.words import unpack_words, words_of
from mote_quant.hf.stored import WHERE, read
from mote_quant.recipe.schema import IntegerBits

_log = logging.getLogger(__name__)
_PACKED, _NAIVE, _ZERO = "weight_packed", "weight", "weight_zero_point"
_WHOLE_ROW = ("tensor", "channel")


class _Weights(BaseModel):
    model_config = ConfigDict(strict=True)

    num_bits: int
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None

    @property
    def columns(self) -> int:
        """Inputs that share a scale, -1 for the whole row."""
        return -1 if self.strategy in _WHOLE_ROW else self.group_size or -1


class _Group(BaseModel):
    model_config = ConfigDict(strict=True)

    targets: list[str]
    weights: _Weights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None


class _Settings(BaseModel):
    """What of a `quantization_config` says how the tensors are to be read."""

    model_config = ConfigDict(strict=True)

    config_groups: dict[str, _Group]
    quantization_status: str = "compressed"
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    kv_cache_scheme: dict[str, Any] | None = None


@dataclass(frozen=True)
class CompressedTensors:
    """`Reader` for `quant_method: compressed-tensors`."""

    settings: _Settings
    known: ClassVar[frozenset[str]] = frozenset(
        {_PACKED, _NAIVE, _ZERO, "weight_scale", "weight_shape", "weight_g_idx", "input_scale", "input_zero_point"}
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> CompressedTensors:
        """From a `quantization_config`; ArtifactError for what is more than integers in the place of weights."""
        settings = read(_Settings, dict(values))
        wrong = _unreadable(settings)
        if wrong is not None:
            raise ArtifactError(f"{WHERE}: {wrong} cannot be read; take a checkpoint without, saved compressed")
        _tell_what_is_left_out(settings)
        return cls(settings)

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """A scale beside the weight, or what stands in its place."""
        return "weight_scale" in tensors

    def spec(self, layer: Layer) -> IntegerBits:
        """Bits, groups and symmetry of the config group that means the layer."""
        weights = self._weights(layer)
        return IntegerBits(
            format=integer_name(weights.num_bits, layer),
            group_size=weights.columns,
            symmetric=weights.symmetric,
            scale_dtype=scale_name(layer, "weight_scale"),
        )

    def codes(self, layer: Layer) -> Codes:
        """As stored; asymmetric codes and their zero points are both moved to start from 0, as ours do."""
        weights = self._weights(layer)
        require_runs(layer.tensors.get("weight_g_idx"), weights.columns, layer, "actorder: group")
        scale = _by_row(layer.tensor("weight_scale"), layer)
        codes = _codes(layer, weights.num_bits)
        if weights.symmetric:
            return Codes(codes - (1 << (weights.num_bits - 1)), scale)
        return Codes(codes, scale, _zero_points(layer, weights.num_bits))

    def _weights(self, layer: Layer) -> _Weights:
        """Of the group with a target that is the layer's name, else a pattern of it, else its class."""
        targets = [(target, group) for group in self.settings.config_groups.values() for target in group.targets]
        for means in (_is_name, _is_pattern, _is_class):
            for target, group in sorted(targets, key=lambda pair: pair[0]):
                if means(target, layer) and group.weights is not None:
                    return _integers(group.weights, layer)
        raise ArtifactError(f"{WHERE}: no config group means {layer.name}, which is stored quantized")


def _unreadable(settings: _Settings) -> str | None:
    sparse = (settings.sparsity_config or {}).get("format", "dense")
    if sparse != "dense":
        return f"sparse weights ({sparse})"
    if settings.transform_config:
        return "weights rotated for their inputs (transform_config)"
    compressed = settings.quantization_status == "compressed"
    return None if compressed else f"weights that are {settings.quantization_status}"


def _integers(weights: _Weights, layer: Layer) -> _Weights:
    if weights.type != "int" or weights.strategy not in (*_WHOLE_ROW, "group"):
        found = f"{weights.type} of {weights.num_bits} bits by {weights.strategy}"
        raise ArtifactError(
            f"{layer.name} holds {found}, which cannot be read; readable are int by tensor, channel or group"
        )
    return weights


def _is_name(target: str, layer: Layer) -> bool:
    return target in layer.names


def _is_pattern(target: str, layer: Layer) -> bool:
    return target.startswith("re:") and layer.matches(target.removeprefix("re:"))


def _is_class(target: str, layer: Layer) -> bool:
    return target in layer.kinds


def _codes(layer: Layer, bits: int) -> Tensor:
    """int16 [out, in], from 0 up."""
    rows, columns = layer.shape
    if _PACKED not in layer.tensors:
        check_tensors(layer.tensors, {_NAIVE: TensorSpec(layer.shape, torch.int8)})
        return layer.tensors[_NAIVE].short() + (1 << (bits - 1))
    check_tensors(layer.tensors, {_PACKED: TensorSpec((rows, words_of(columns, bits)), torch.int32)})
    return unpack_words(layer.tensors[_PACKED], bits, columns).short()


def _zero_points(layer: Layer, bits: int) -> Tensor:
    """uint8 or int16 [out, groups], from 0 up."""
    stored = layer.tensor(_ZERO)
    if stored.dtype == torch.int32:
        return unpack_words(stored.t(), bits, layer.shape[0]).t()
    return _by_row(stored, layer).short() + (1 << (bits - 1))


def _by_row(values: Tensor, layer: Layer) -> Tensor:
    """One value for all rows, or one a row, as [out, 1]; [out, groups] as it is."""
    return values.expand(layer.shape[0], 1) if values.numel() == 1 else values.view(len(values), -1)


def _tell_what_is_left_out(settings: _Settings) -> None:
    groups = settings.config_groups.values()
    if any(group.input_activations or group.output_activations for group in groups):
        _log.warning("this checkpoint was made to run with quantized activations; here only its weights are quantized")
    if settings.kv_cache_scheme:
        _log.warning("this checkpoint was made to run with a quantized key-value cache; here it is not quantized")
