"""A model folder that another library quantized, as one of ours: the same codes and scales in packed layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mote_quant.anatomy.structure import linear_shape
from mote_quant.errors import ArtifactError, FormatError
from mote_quant.formats import format_for
from mote_quant.hf.foreign.base import Layer, Reader
from mote_quant.hf.foreign.files import WeightFiles
from mote_quant.hf.foreign.naming import module_names
from mote_quant.hf.skeleton import dtype_of_config, model_class, skeleton_of
from mote_quant.hf.structure import Structure, rebuild
from mote_quant.recipe.schema import PackedBits

_BIAS = "bias"
_AGAIN = "copy or download the model again"


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A folder with its quantized `layers`; none of the weights has been read yet.

    `config` is that of the dense model; `specs` has the format of every layer by its name in the model.
    """

    folder: Path
    config: Any
    files: WeightFiles
    reader: Reader
    layers: tuple[Layer, ...]
    specs: Mapping[str, PackedBits]

    @classmethod
    def open(cls, folder: Path, config: Any, reader: Reader) -> ForeignCheckpoint:
        """`config` is the one in `folder`, as transformers read it. Raises ArtifactError."""
        dense = copy.deepcopy(config)
        del dense.quantization_config
        files = WeightFiles(folder)
        layers = tuple(_layers(skeleton_of(dense), files, reader))
        if not layers:
            raise ArtifactError(f"{folder} is said to be quantized, but holds no quantized layer; {_AGAIN}")
        return cls(folder, dense, files, reader, layers, {layer.module: reader.spec(layer) for layer in layers})

    def skeleton(self) -> nn.Module:
        """The model without weights, on meta."""
        skeleton = skeleton_of(self.config)
        rebuild(skeleton, self._structure)
        return skeleton

    def load(self) -> nn.Module:
        """The model with its weights, through transformers' own loading. Raises ArtifactError."""
        from transformers import GenerationConfig

        from mote_quant.hf.quantizer import MoteConfig

        config = copy.deepcopy(self.config)
        config.quantization_config = MoteConfig(self._structure.to_dict()).to_dict()
        model, info = model_class(config).from_pretrained(
            None,
            config=config,
            state_dict=dict(self.tensors()),
            dtype=dtype_of_config(config),
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise ArtifactError(f"{self.folder} lacks {', '.join(sorted(info['missing_keys']))}; {_AGAIN}")
        # What transformers does itself when it is given a folder.
        model.name_or_path = model.config.name_or_path = str(self.folder)
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(self.folder))
        loaded: nn.Module = model
        return loaded

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in the files, those of quantized layers as our formats store them."""
        quantized = {layer.name for layer in self.layers}
        yield from ((name, self.files[name]) for name in self.files if _split(name)[0] not in quantized)
        for layer in self.layers:
            yield from ((f"{layer.name}.{name}", tensor) for name, tensor in self._packed(layer))

    @property
    def _structure(self) -> Structure:
        return Structure(packed=dict(self.specs))

    def _packed(self, layer: Layer) -> Iterator[tuple[str, Tensor]]:
        try:
            codes = self.reader.codes(layer)
            if tuple(codes.codes.shape) != layer.shape:
                raise FormatError(f"its codes are {list(codes.codes.shape)}, the model's layer is {list(layer.shape)}")
            yield from format_for(self.specs[layer.module]).compress(codes).items()
        except FormatError as error:
            raise ArtifactError(f"{layer.name} cannot be read: {error}; {_AGAIN}") from error
        if _BIAS in layer.tensors:
            yield _BIAS, layer.tensors[_BIAS]


def _layers(skeleton: nn.Module, files: WeightFiles, reader: Reader) -> Iterator[Layer]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key in files:
        module, name = _split(key)
        modules.setdefault(module, {})[name] = files[key]
    quantized = {module: tensors for module, tensors in modules.items() if reader.holds(tensors)}
    for stored, module in module_names(skeleton, quantized).items():
        yield _layer(skeleton, stored, module, quantized[stored], reader)


def _split(key: str) -> tuple[str, str]:
    """Module, and name below it; what lies beside a weight may be named below the weight."""
    module, dot, below = key.partition(".weight.")
    if dot:
        return module, f"weight.{below}"
    module, _, name = key.rpartition(".")
    return module, name


def _layer(skeleton: nn.Module, stored: str, name: str, tensors: dict[str, Tensor], reader: Reader) -> Layer:
    try:
        module = skeleton.get_submodule(name)
    except AttributeError as error:
        raise ArtifactError(f"{stored} is stored quantized, but {type(skeleton).__name__} has no {name}") from error
    shape = linear_shape(module)
    if shape is None:
        raise ArtifactError(f"{stored} is quantized and a {type(module).__name__}; only linear layers can be read so")
    unknown = sorted(set(tensors) - set(reader.known) - {_BIAS})
    if unknown:
        raise ArtifactError(f"{stored}.{unknown[0]} is nothing that can be read here; {_AGAIN}")
    kinds = frozenset(kind.__name__ for kind in type(module).__mro__)
    return Layer(stored, name, kinds, (shape[1], shape[0]), _without_idle_bias(stored, module, tensors))


def _without_idle_bias(stored: str, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some writers give every layer a bias, of zeros where it had none."""
    if _BIAS not in tensors or getattr(module, _BIAS, None) is not None:
        return tensors
    if bool(tensors[_BIAS].any()):
        raise ArtifactError(f"{stored}.{_BIAS} is not zero, but the model's layer has no bias; {_AGAIN}")
    return {name: tensor for name, tensor in tensors.items() if name != _BIAS}
