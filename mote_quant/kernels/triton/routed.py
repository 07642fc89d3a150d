"""The routed experts of a layer, each product of all experts in one launch, from their bytes where they lie.

Weights are found through a table of addresses: experts stay the separate tensors that they are in the model and its
file, where a stack would hold everything twice while it is made. Nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
import triton
from torch import Tensor

from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.triton.activation import Activations, arranged
from mote_quant.kernels.triton.digits import digits_per_byte
from mote_quant.kernels.triton.routed_rows import fall_rows, rise_rows
from mote_quant.kernels.triton.routed_tiles import fall_tiles, rise_tiles
from mote_quant.kernels.triton.ternary import BITS
from mote_quant.kernels.triton.tuning import DECODE_PAIRS, bucket
from mote_quant.recipe.schema import TernaryBits


def experts(x: Tensor, chosen: Tensor, gates: Tensor, packed: PackedExperts) -> Tensor:
    """`sum_k gate_k * E_k(x)`: x [T, hidden], integers chosen [T, k], gates [T, k] -> [T, hidden] in the type of x.

    A choice that is no expert's number counts for nothing.
    """
    chosen, gates = chosen.contiguous(), gates.float().contiguous()
    compute = _by_rows if chosen.numel() <= DECODE_PAIRS else _by_tiles
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return compute(_Layer(packed), x, chosen, gates)


@dataclass(frozen=True)
class _Layer:
    """What the launches of a layer have in common."""

    packed: PackedExperts

    @property
    def spec(self) -> TernaryBits:
        return cast(TernaryBits, cast(Any, self.packed.format).spec)

    def arranged(self, x: Tensor) -> Activations:
        codes = torch.int8 if self.spec.activations == "int8" else None
        return arranged(x, digits_per_byte(BITS[self.spec.packing]), codes)

    def arguments(self, given: Activations, projection: int) -> dict[str, Any]:
        """`projection` is any of those that meet the given activations: their widths are the same."""
        packed, bits = self.packed, BITS[self.spec.packing]
        return {
            "weights": _addresses(packed.weights), "like": packed.weights[projection],
            "width": packed.weights[projection].shape[1], "scales": _addresses(packed.scales),
            "scale": packed.scales[0], "scale_stride": int(self.spec.granularity != "tensor"),
            "biases": _addresses(packed.biases), "bias": packed.biases[0] if packed.biases else None,
            "planes": given.planes, "plane": given.plane, "x_scales": given.scales, "x_sums": given.sums,
            "experts": packed.count, "entries": packed.projections - 1, "bits": bits,
            "digits": digits_per_byte(bits), "integer": given.sums is not None, "aligned": self._aligned(16),
        }  # fmt: skip

    def row_arguments(self, given: Activations, projection: int) -> dict[str, Any]:
        """As `arguments`, in units of four bytes where all rows start at a multiple of four."""
        arguments = self.arguments(given, projection)
        words = arguments["integer"] and not arguments["width"] % 4 and self._aligned(4)
        if words:
            arguments |= {
                "like": arguments["like"].view(-1, arguments["width"]).view(torch.int32),
                "width": arguments["width"] // 4,
                "planes": given.planes.view(torch.int32),
                "plane": given.plane // 4,
            }
        return arguments | {"words": words}

    def _aligned(self, size: int) -> bool:
        return not any(weight.data_ptr() % size for weight in self.packed.weights)


def _by_rows(layer: _Layer, x: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    packed, pairs = layer.packed, chosen.numel()
    tokens, top_k = chosen.shape
    common = {"chosen": chosen, "top_k": top_k, "bucket": bucket(pairs)}
    entering = x.new_empty(pairs, packed.inner)
    lanes = packed.inner * (packed.projections - 1)
    rise_rows[lambda sizes: (triton.cdiv(lanes, sizes["block_rows"]), pairs)](
        **layer.row_arguments(layer.arranged(x), 0), **common,
        out=entering, rows=packed.inner, activation=packed.activation,
    )  # fmt: skip
    out = x.new_empty(tokens, packed.hidden)
    fall_rows[lambda sizes: (triton.cdiv(packed.hidden, sizes["block_rows"]), tokens)](
        **layer.row_arguments(layer.arranged(entering), -1), **common, out=out, rows=packed.hidden, gates=gates
    )
    return out


def _by_tiles(layer: _Layer, x: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    packed, pairs, top_k = layer.packed, chosen.numel(), chosen.shape[1]
    in_order, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(packed.count + 1, dtype=chosen.dtype, device=chosen.device)
    common = {
        "order": order, "offsets": torch.searchsorted(in_order, numbers, out_int32=True), "bucket": bucket(pairs),
        "most": triton.next_power_of_2(packed.count),
    }  # fmt: skip

    def grid(lanes: int) -> Callable[[Mapping[str, int]], tuple[int, int]]:
        most = min(packed.count, pairs)
        return lambda sizes: (pairs // sizes["block_tokens"] + most, triton.cdiv(lanes, sizes["block_rows"]))

    entering = x.new_empty(pairs, packed.inner)
    rise_tiles[grid(packed.inner * (packed.projections - 1))](
        **layer.arguments(layer.arranged(x), 0), **common,
        out=entering, rows=packed.inner, top_k=top_k, activation=packed.activation,
    )  # fmt: skip
    out = x.new_zeros(pairs, packed.hidden, dtype=x.dtype if top_k == 1 else torch.float32)
    fall_tiles[grid(packed.hidden)](
        **layer.arguments(layer.arranged(entering), -1), **common, out=out, rows=packed.hidden, gates=gates
    )
    return out if top_k == 1 else out.view(-1, top_k, packed.hidden).sum(1).to(x.dtype)


def _addresses(tensors: Sequence[Tensor]) -> Tensor | None:
    return _table(tuple(tensor.data_ptr() for tensor in tensors), tensors[0].device) if tensors else None


@lru_cache(maxsize=4096)
def _table(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    # Copied to the device once: a copy in each call would have to wait, and could not be recorded in a CUDA graph.
    return torch.tensor(addresses, dtype=torch.int64, device=device)
