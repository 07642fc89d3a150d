"""Speed: operations on packed weights, each with a torch reference."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mote_quant.kernels.packed_linear import PackedLinear

__all__ = ["PackedLinear"]


def __getattr__(name: str) -> Any:
    # On use: the layer builds on mote_quant.ternary, which itself takes its quantizers from this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.packed_linear"), name)
