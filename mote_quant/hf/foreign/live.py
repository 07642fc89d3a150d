"""Models that transformers loaded with another library's quantized layers in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mote_quant.errors import ModelError
from mote_quant.hf import bnb
from mote_quant.hf.skeleton import foreign_method

ABSORBED: Mapping[str, Callable[[nn.Module], object]] = {"bitsandbytes": bnb.absorb}
"""quant_method -> what puts packed layers of the same codes in the place of the library's."""


def take_over(model: nn.Module) -> None:
    """Make the quantized layers of `model` ours, in place; nothing for a dense model or one of ours.

    ModelError for layers that only their library can read.
    """
    method = foreign_method(getattr(model, "config", None))
    if method is None:
        return
    if method not in ABSORBED:
        raise ModelError(
            f"{type(model).__name__} holds layers of {method}; load the same files with mote_quant.load_model(folder)"
        )
    ABSORBED[method](model)
