"""The KV cache: what a model keeps of the tokens it has seen, told from its config."""

from __future__ import annotations

from typing import Any

from mote_quant.errors import RequestError

BFLOAT16_BYTES = 2
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_FULL = "full_attention"


def cache_bytes(config: Any, context: int, batch: int = 1) -> int:
    """Bytes of keys and values in bfloat16 after `context` tokens of each of `batch` sequences.

    A layer with a window keeps no more tokens than that. RequestError for layers that keep something else.
    """
    text = config.get_text_config()
    heads: int = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_size: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens = sum(_kept(text, kind, context) for kind in _kinds(text))
    return batch * tokens * 2 * heads * head_size * BFLOAT16_BYTES


def _kinds(text: Any) -> list[str]:
    """The kind of attention of each layer; a config that lists none has one kind throughout."""
    listed = getattr(text, "layer_types", None)
    if listed is not None:
        return list(listed)
    windowed = (kind for kind, window in _WINDOWS.items() if getattr(text, window, None) is not None)
    return [next(windowed, _FULL)] * int(text.num_hidden_layers)


def _kept(text: Any, kind: str, context: int) -> int:
    """Tokens that a layer keeps."""
    if kind == _FULL:
        return context
    if kind not in _WINDOWS:
        raise RequestError(f"the cache of a {text.model_type} with layers of {kind} is not known; leave --context out")
    return min(context, int(getattr(text, _WINDOWS[kind])))
