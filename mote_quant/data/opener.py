"""The data of one model's run: every source is opened once, and refused where the model cannot take it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from mote_quant.data import open_source
from mote_quant.data.reading import USUAL, Opener, Reading
from mote_quant.data.source import Source, within
from mote_quant.data.streams.stream import Streamed
from mote_quant.data.text import collate_blocks
from mote_quant.errors import DataError

__all__ = ["Opener", "context_of", "opener_for", "too_long"]


def opener_for(model: nn.Module, *, processor: Any = None, data: str | Source | None = None, seed: int = 0) -> Opener:
    """Opens what a step names, or `data` in place of all names. DataError for what does not fit `model`."""
    if isinstance(data, str) and not data.strip():
        raise DataError("data is empty: name a file or a data source, or leave it out")
    context = context_of(model)
    opened: dict[tuple[str, int | None, Reading], Source] = {}

    def open_data(name: str, max_length: int | None, reading: Reading = USUAL) -> Source:
        if isinstance(data, Source):
            return _fitted(data, model)
        if (why := too_long(max_length, context)) is not None:
            raise DataError(f"max_length: {why}")
        key = (data or name, max_length, reading)
        if key not in opened:
            source = open_source(key[0], processor=processor, max_length=max_length, seed=seed, reading=reading)
            if max_length is None and context is not None and _block(source) > context:
                source = open_source(key[0], processor=processor, max_length=context, seed=seed, reading=reading)
            opened[key] = _fitted(source, model)
        return opened[key]

    return open_data


def context_of(model: nn.Module) -> int | None:
    """The most tokens that `model` takes, where its config says it."""
    return _text_config(model, "max_position_embeddings")


def too_long(max_length: int | None, context: int | None) -> str | None:
    """What is wrong with a `max_length` for a model of that context; None for one that fits, or is not known not to."""
    if max_length is None or context is None or max_length <= context:
        return None
    return f"{max_length} is more than the {context} tokens this model can take"


def _block(source: Source) -> int:
    """Tokens a sample of a source that cuts its text into blocks, which could be shorter; 0 for any other."""
    if isinstance(source, Streamed):
        return source.stream.block
    return len(source.train[0]["input_ids"]) if source.collate is collate_blocks and source.train else 0


def _fitted(source: Source, model: nn.Module) -> Source:
    if source.kind == "vqa" and getattr(cast(Any, model).config, "vision_config", None) is None:
        raise DataError(f"{source.name} asks about images, {type(model).__name__} takes text only; choose other data")
    return within(source, context_of(model), _text_config(model, "vocab_size"))


def _text_config(model: nn.Module, name: str) -> int | None:
    """A size of the language model, where its config says it."""
    size: int | None = getattr(cast(Any, model).config.get_text_config(), name, None)
    return size
