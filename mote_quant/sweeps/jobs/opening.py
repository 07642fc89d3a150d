"""What several cells of one worker open: kept, because opening data takes longer than evaluating a small model."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from mote_quant.data.embedded import embedded
from mote_quant.data.opener import opener_for
from mote_quant.data.source import Source, whole
from mote_quant.hf.loading import load_model, load_processor


def open_base(name: str, seed: int) -> tuple[nn.Module, Any]:
    """A fresh copy of a base model, and its processor: a folder, a hub id, or an embedded model built under `seed`."""
    built_in = None if Path(name).is_dir() else embedded(name)
    if built_in is not None:
        return built_in.model(seed), built_in.processor()
    return load_model(name), load_processor(name)


@lru_cache(maxsize=2)
def open_data(folder: str, name: str, heldout: str | None, max_length: int | None, seed: int) -> tuple[Source, Any]:
    """The data of a sweep, fitted to the model in `folder`, and that model's processor.

    With `heldout`, its samples of all splits are the test split.
    """
    model, processor = open_base(folder, seed)
    source = opener_for(model, processor=processor, seed=seed)(name, max_length)
    if heldout is not None:
        other = opener_for(model, processor=processor, seed=seed)(heldout, max_length)
        source = replace(source, test=whole(other).test, fingerprint=f"{source.fingerprint}+{other.fingerprint}")
    return source, processor
