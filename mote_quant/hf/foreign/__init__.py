"""Checkpoints that other libraries quantized, read without those libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mote_quant.errors import ArtifactError
from mote_quant.hf.foreign.awq import Awq
from mote_quant.hf.foreign.base import Reader
from mote_quant.hf.foreign.bitsandbytes import BitsAndBytes
from mote_quant.hf.foreign.checkpoint import ForeignCheckpoint
from mote_quant.hf.foreign.compressed_tensors import CompressedTensors
from mote_quant.hf.foreign.gptq import Gptq
from mote_quant.hf.skeleton import foreign_method, quantization_of
from mote_quant.hf.stored import WHERE

READERS: Mapping[str, Callable[[Mapping[str, Any]], Reader]] = {
    "gptq": Gptq.of,
    "awq": Awq.of,
    "compressed-tensors": CompressedTensors.of,
    "bitsandbytes": BitsAndBytes.of,
}
"""quant_method of a config -> the reader that its `quantization_config` makes."""

__all__ = ["READERS", "ForeignCheckpoint", "reader_for"]


def reader_for(config: Any) -> Reader | None:
    """What reads the weights of a model with this transformers config; None for one that is dense or ours.

    ArtifactError for a quantization that cannot be read.
    """
    method = foreign_method(config)
    if method is None:
        return None
    if method not in READERS:
        raise ArtifactError(
            f"{WHERE}: weights quantized with {method} cannot be read, only with {', '.join(READERS)}; start from the "
            "full-precision weights"
        )
    return READERS[method](quantization_of(config) or {})
