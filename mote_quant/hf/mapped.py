"""Models whose tensors are maps of their files, so that holding them takes no memory until they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mote_quant.hf.apart import to_unfuse
from mote_quant.hf.foreign import reader_for
from mote_quant.hf.fused import fused_experts
from mote_quant.hf.load_apart import load_apart
from mote_quant.hf.loading import as_our_error, load_model, skeleton_in
from mote_quant.hf.skeleton import read_config
from mote_quant.recipe.schema import Bits


def not_mapped_because(folder: Path, bits: Mapping[str, Bits]) -> str | None:
    """Why the model in `folder`, to be quantized by the rules `bits`, must be held in memory; None when it need not."""
    if reader_for(read_config(folder)) is not None:
        return "its quantized layers are translated on loading"
    if not any(folder.glob("*.safetensors")):
        return "its weights are not in safetensors files"
    skeleton = skeleton_in(folder)
    stacked = fused_experts(skeleton).keys() - to_unfuse(bits, skeleton)
    return f"experts that no rule takes apart are fused on loading ({min(stacked)}, ...)" if stacked else None


def load_mapped(folder: Path, bits: Mapping[str, Bits]) -> nn.Module:
    """The model in `folder`, experts that the rules `bits` quantize one by one taken apart already."""
    apart = to_unfuse(bits, skeleton_in(folder))
    if not apart:
        return load_model(folder)
    with as_our_error(folder, local=True):
        return load_apart(folder, apart)
