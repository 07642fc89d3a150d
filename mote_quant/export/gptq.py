"""GPTQ checkpoints, as gptqmodel, transformers (with optimum) and vLLM read them.

Symmetric weights are laid out as `gptq`, asymmetric ones as `gptq_v2`, in which a zero point of 0 has a place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers, linear_shape
from mote_quant.errors import SaveError
from mote_quant.export.gptq_fit import Grid, common_grid, packed_layers
from mote_quant.formats.bits import unpack_bits
from mote_quant.formats.groups import count_groups, group_width
from mote_quant.hf.foreign import ForeignCheckpoint, reader_for
from mote_quant.hf.foreign.gptq import PLAIN, V2
from mote_quant.hf.foreign.words import pack_words
from mote_quant.hf.saving import as_save_error, write_whole
from mote_quant.hf.skeleton import read_config, shadow
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.version import __version__


def export(model: nn.Module, folder: Path, processor: Any = None) -> None:
    """Write `model` (and its processor) to `folder`; what was written is read back and compared first.

    Needs room for the model twice. Raises FormatError for a model that GPTQ files cannot hold, SaveError.
    """
    grid = common_grid(model)
    saves = [partial(_write, model, grid), *([] if processor is None else [processor.save_pretrained])]
    with as_save_error(folder):
        write_whole(folder, *saves, partial(_read_back, model))


@torch.no_grad()
def _write(model: nn.Module, grid: Grid, folder: Path) -> None:
    settings = _settings(model, grid)
    # A copy without weights is given the config of the files, so that the model keeps its own.
    written = cast(Any, shadow(model))
    written.config.quantization_config = settings
    written.generation_config = getattr(model, "generation_config", None)
    written.save_pretrained(folder, state_dict=dict(_tensors(model, grid)))
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _tensors(model: nn.Module, grid: Grid) -> Iterator[tuple[str, Tensor]]:
    packed = packed_layers(model)
    yield from ((name, t) for name, t in model.state_dict().items() if name.rpartition(".")[0] not in packed)
    for name, layer in packed.items():
        yield from ((f"{name}.{key}", tensor) for key, tensor in _layer(layer, grid).items())


def _layer(layer: PackedLinear, grid: Grid) -> dict[str, Tensor]:
    tensors, columns, bits = layer.packed.tensors, layer.in_features, grid.bits
    groups = count_groups(grid.group_size, columns)
    if grid.symmetric:
        # The older layout holds every zero point less one.
        zero = torch.full((layer.out_features, groups), (1 << (bits - 1)) - 1, dtype=torch.uint8)
    else:
        zero = unpack_bits(tensors["weight_zero"].cpu(), bits, groups)
    stored = {
        "qweight": pack_words(unpack_bits(tensors["weight"].cpu(), bits, columns), bits).t().contiguous(),
        "qzeros": pack_words(zero.t(), bits),
        "scales": tensors["weight_scale"].t().contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // group_width(grid.group_size, columns),
    }
    return stored if layer.bias is None else stored | {"bias": layer.bias}


def _settings(model: nn.Module, grid: Grid) -> dict[str, Any]:
    """The `quantization_config`."""
    layout = PLAIN if grid.symmetric else V2
    settings = {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group_size,
        "sym": grid.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": layout,
        "format": layout,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"mote-quant:{__version__}"]},
    }
    return settings | _left_dense(model)


def _left_dense(model: nn.Module) -> dict[str, Any]:
    """Linear layers of the decoder that stay dense: as gptqmodel is told (`dynamic`), and as transformers is."""
    packed = packed_layers(model)
    linears = {path: _linears(layer) for path, layer in decoder_layers(model)}
    dense = [name for path, inside in linears.items() for child in inside if (name := f"{path}.{child}") not in packed]
    if not dense:
        return {}
    quantized = [{child for child in inside if f"{path}.{child}" in packed} for path, inside in linears.items()]
    alike = all(children == quantized[0] for children in quantized)
    return {
        "dynamic": {f"-:^{re.escape(name)}$": {} for name in dense},
        # Matched from the end of a name: short where all layers are alike, else in full.
        "modules_in_block_to_quantize": [sorted(quantized[0]) if alike else list(packed)],
    }


def _linears(layer: nn.Module) -> list[str]:
    return [name for name, module in layer.named_modules() if linear_shape(module) is not None]


def _read_back(model: nn.Module, folder: Path) -> None:
    """SaveError unless what is in `folder` loads to the same codes, scales and dense weights."""
    config = read_config(folder)
    reader = reader_for(config)
    if reader is None:
        raise SaveError(f"{folder} does not say that it is quantized: a bug in mote-quant")
    read = ForeignCheckpoint.open(folder, config, reader).load().state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(read[name].cpu(), tensor.cpu().to(read[name].dtype)):
            raise SaveError(f"{name} was read back other than it was written: a bug in mote-quant")
