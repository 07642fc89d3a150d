"""The embedded text model: a small Qwen2, untrained; the recipe `text-dense` trains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mote_quant.data.stdlib_text.processor import VOCABULARY, build_processor

if TYPE_CHECKING:
    from transformers import Qwen2Config, Qwen2ForCausalLM


def build_config() -> Qwen2Config:
    """Sizes are multiples of 64, so that every linear takes integer groups of 64."""
    from transformers import Qwen2Config

    tokenizer = build_processor()
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def build_dense(seed: int = 0) -> Qwen2ForCausalLM:
    """The model under `seed`; leaves the caller's random state alone."""
    from transformers import Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(build_config())
