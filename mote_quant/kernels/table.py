"""The op table: each operation on packed weights with its implementations, fastest first, the torch reference last."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from mote_quant.errors import KernelError
from mote_quant.kernels import bnb, reference, triton
from mote_quant.kernels import experts as routed
from mote_quant.kernels.cpu import integer, library, ternary
from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.weight import PackedWeight

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op; `supports` says for which inputs it can be taken, `installed` whether ever.

    Of x only the type, the device and whether there is any may decide: what was found for a weight is remembered.

    `run` takes (x [..., in], PackedWeight, bias or None) or (x [T, hidden], chosen, gates, PackedExperts), and
    `supports` x and the weight or the experts.
    """

    name: str
    run: Callable[..., Tensor]
    supports: Callable[[Tensor, Any], bool]
    installed: Callable[[], bool] = lambda: True


def _compiled() -> bool:
    return library.library() is not None


def _integer(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    return integer.matmul(reference.rounded_input(x, weight), weight, bias)


def _anything(x: Tensor, packed: Any) -> bool:
    return True


_TRITON = Implementation("triton", triton.matmul, triton.supports, triton.installed)
_TORCH = Implementation("torch", reference.matmul, _anything)
_CPU_TERNARY = Implementation("cpu", ternary.matmul, ternary.supports, _compiled)
_CPU_INTEGER = Implementation("cpu", _integer, integer.supports, _compiled)
_BITSANDBYTES = Implementation("bitsandbytes", bnb.matmul, bnb.supports, bnb.installed)

OPS: Mapping[str, tuple[Implementation, ...]] = {
    "ternary_matmul": (_TRITON, _CPU_TERNARY, _CPU_INTEGER, _TORCH),
    "binary_matmul": (_CPU_INTEGER, _TORCH),
    "int_matmul": (_TRITON, _CPU_INTEGER, _TORCH),
    "codebook_matmul": (_BITSANDBYTES, _TORCH),
    "ternary_experts": (
        Implementation("triton", triton.experts, triton.supports_experts, triton.installed),
        Implementation("cpu", ternary.experts, ternary.supports_experts, _compiled),
        Implementation("torch", routed.route, _anything),
    ),
}


def matmul(op: str, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] times a packed weight [out, in], by the fastest implementation that takes them."""
    _check(x, weight.tensors["weight"], weight.shape[1])
    if bias is not None and (bias.numel() != weight.shape[0] or not bias.is_floating_point()):
        raise KernelError(f"{op}: {weight.shape[0]} rows cannot take a bias {bias.dtype} {list(bias.shape)}")
    if x.is_neg():
        x = x.resolve_neg()
    choices, kind = OPS[op], (x.dtype, x.device, x.numel() > 0)
    remembered = weight.taken.get(kind)
    if remembered is None or remembered[0] is not choices:
        remembered = weight.taken[kind] = choices, _select(op, x, weight)
    taken: Implementation = remembered[1]
    return taken.run(x, weight, bias)


def experts(x: Tensor, chosen: Tensor, gates: Tensor, packed: PackedExperts) -> Tensor:
    """`sum_k gate_k * E_k(x)` for x [T, hidden], by the fastest implementation that takes them."""
    _check(x, packed.weights[0], packed.hidden)
    fits = chosen.dim() == 2 and chosen.shape == gates.shape and len(chosen) == len(x)
    if not fits or chosen.is_floating_point() or x.dim() != 2:
        found = f"{list(x.shape)}, {chosen.dtype} {list(chosen.shape)}, {list(gates.shape)}"
        raise KernelError(f"experts take x [T, hidden], integers chosen [T, k] and gates [T, k], found {found}")
    if x.is_neg():
        x = x.resolve_neg()
    return _select("ternary_experts", x, packed).run(x, chosen, gates, packed)


def _check(x: Tensor, stored: Tensor, columns: int) -> None:
    if x.dim() == 0 or x.shape[-1] != columns:
        raise KernelError(f"a packed weight of {columns} columns cannot take x {list(x.shape)}")
    if x.device != stored.device:
        raise KernelError(f"x is on {x.device}, the packed weight on {stored.device}: move one of them")


def implementations() -> dict[str, str]:
    """The name of the first choice for every op, of those installed here."""
    return {op: next(choice.name for choice in choices if choice.installed()) for op, choices in OPS.items()}


def _select(op: str, x: Tensor, packed: Any) -> Implementation:
    choices = OPS[op]
    taken = next(choice for choice in choices if choice.supports(x, packed))
    if taken is choices[-1] and len(choices) > 1 and not x.is_meta:
        _warn(op, x.device.type, str(x.dtype), repr(getattr(packed.format, "spec", packed.format)))
    return taken


@cache
def _warn(op: str, device: str, dtype: str, what: str) -> None:
    if os.environ.get(library.CHOICE) == library.REFERENCE:
        return
    _log.warning("%s of %s runs as plain torch, which is slow: %s", op, what, _reason(dtype, device))


def _reason(dtype: str, device: str) -> str:
    if device == "cuda" and not triton.installed():
        return "Triton is not installed; pip install triton"
    missing = library.why_not() if device == "cpu" else None
    return missing or f"no kernel here takes this format with {dtype} on {device}"
