"""Finished pico models: up-cycled and quantized, not trained."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, quantize_it, upcycled

BITS: dict[str, Any] = TERNARY | INT4_SHARED | {"attention": "int8"}


def finished(family: str, bits: dict[str, Any], **settings: Any) -> PreTrainedModel:
    """The model of a family after both steps; `settings` are those of up-cycling."""
    model = pico.PICO[family]()
    quantize_it(model, upcycled(model, bits, **settings))
    return model
