"""nf4 and fp4 codes of our own: every weight to the nearest value of the table, to the bit as bitsandbytes does it.

With `double_quant` the scales too go to the nearest of their 256 values; bitsandbytes on a CPU misses it in a near tie.
Those values are the dynamic tree type of Dettmers et al. 2021 (8-bit Optimizers via Block-wise Quantization).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, SCALE_TABLE, SCALES_PER_SCALE, table_of
from mote_quant.formats.groups import split_groups
from mote_quant.recipe.schema import CodebookBits
from mote_quant.steps.quantize.backends.bitsandbytes import quantize_codebook
from mote_quant.steps.quantize.methods.base import Codes, Seen, finite_weight

_SMALLEST = 1e-38


def codebook(weight: Tensor, spec: CodebookBits, seen: Seen | None = None, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in], computed in float32; what calibration saw is not used."""
    values = finite_weight(weight, name)
    codes, scale = _nearest_in_blocks(values.flatten(), table_of(spec.format, values.device), spec.block_size)
    if not spec.double_quant:
        return Codes(codes.view(values.shape), scale)
    offset, table = scale.mean(), dynamic_table().to(values.device)
    scale_codes, scale_scale = _nearest_in_blocks(scale - offset, table, SCALES_PER_SCALE)
    companions = {SCALE_TABLE: table, SCALE_SCALE: scale_scale, SCALE_OFFSET: offset.view(1)}
    return Codes(codes.view(values.shape), scale_codes, companions=companions)


CODEBOOK = {"own": codebook, "bitsandbytes": quantize_codebook}
"""How codes are found, by `backend`."""


def codes_for(weight: Tensor, spec: CodebookBits, *, name: str = "weight") -> Codes:
    """Codes of a weight [out, in] by the backend that `spec` names. BadWeightsError, MissingExtraError."""
    return CODEBOOK[spec.backend](weight, spec, name=name)


def dynamic_table() -> Tensor:
    """256 values from -1 to 1, ascending, in seven decades: each decade down has half as many as the one above it."""
    decades = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1.0, 2**exponent + 1)
        decades.append(10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2))
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


def _nearest_in_blocks(values: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Flat values -> uint8 codes into `table` and the largest magnitude of each block of `size` values.

    Of two values equally near, the smaller one is taken.
    """
    blocks, full = split_groups(values.unsqueeze(0), size)[0], len(values) // size
    scale = blocks.abs().amax(-1)
    scaled = blocks * (1.0 / scale.clamp(min=_SMALLEST)).unsqueeze(-1)
    # bitsandbytes divides in a short last block, and never stores a zero for it.
    scale[full:].clamp_(min=_SMALLEST)
    scaled[full:] = blocks[full:] / scale[full:].unsqueeze(-1)
    ascending, order = table.sort(stable=True)
    between = (ascending[:-1] + ascending[1:]) / 2
    codes = order[torch.bucketize(scaled.clamp_(-1, 1).flatten()[: len(values)], between, out_int32=True)]
    return codes.to(torch.uint8), scale
