from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from mote_quant.errors import RequestError
from mote_quant.memory import facts
from mote_quant.memory.cache import cache_bytes
from tests import pico


def kept_by(model: Any, tokens: int, batch: int) -> int:
    """Bytes of keys and values in the cache that transformers fills, were they bfloat16."""
    ids = torch.randint(pico.FIRST_WORD, pico.VOCABULARY, (batch, tokens))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return sum(2 * (layer.keys.numel() + layer.values.numel()) for layer in cache.layers)


@pytest.mark.parametrize("family", pico.PICO)
def test_as_many_bytes_as_transformers_keeps(family: str) -> None:
    model = pico.PICO[family](layers=3)
    tokens = 7  # below every window: beyond it, transformers drops one token more
    assert cache_bytes(model.config, tokens, batch=2) == kept_by(model, tokens, 2)


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    config = pico.PICO["gemma2"](layers=3).config
    assert [*config.layer_types] == ["sliding_attention", "full_attention", "sliding_attention"]
    token = 2 * 2 * config.num_key_value_heads * config.head_dim
    assert cache_bytes(config, 20) == token * (8 + 20 + 8)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"sliding_window": 8}, [8, 8]),
        ({"sliding_window": None}, [20, 20]),
    ],
)
def test_a_window_that_all_layers_have(settings: dict[str, Any], tokens: list[int]) -> None:
    config = transformers.MistralConfig(
        num_hidden_layers=2, num_key_value_heads=3, num_attention_heads=6, head_dim=4, **settings
    )
    assert cache_bytes(config, 20, batch=5) == 5 * sum(tokens) * 2 * 2 * 3 * 4


def test_a_window_that_is_switched_off_is_none() -> None:
    settings = {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8}
    windowed = {"sliding_window": 8, "max_window_layers": 1}
    on = transformers.Qwen2Config(**settings, **windowed, use_sliding_window=True)
    off = transformers.Qwen2Config(**settings, **windowed, use_sliding_window=False)
    assert (cache_bytes(on, 20), cache_bytes(off, 20)) == (16 * (20 + 3 * 8), 16 * 4 * 20)


def test_known_sizes() -> None:
    # 36 layers, 2 heads of 128: 36 KiB a token. The language model of a LLaVA counts: 28 layers of the same.
    assert cache_bytes(facts.load("Qwen2.5-3B"), 8192) == 8192 * 36 * 1024
    assert cache_bytes(facts.load("llava-qwen2.5-1.5b"), 10) == 10 * 28 * 1024


def test_layers_that_keep_something_else_are_refused() -> None:
    config = transformers.Qwen3Config(num_hidden_layers=2)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(RequestError, match="layers of linear_attention is not known; leave --context out"):
        cache_bytes(config, 8)
