"""What pico models are built of: seeded random weights, float32, two decoder layers, hidden 32, feed-forward 48."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 96
HIDDEN, FFN, LAYERS, HEAD = 32, 48, 2, 16
POSITIONS = 64
SPREAD = 0.2  # a trained model's contrast between logits, not a fresh one's near-uniform output
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ODD: dict[str, int] = {"hidden": 38, "ffn": 47}

Builder = Callable[..., PreTrainedModel]


def config(name: str, **settings: Any) -> Any:
    """An object of the class `{name}Config`."""
    return getattr(transformers, f"{name}Config")(**settings)


def model(name: str, config: Any, seed: int) -> PreTrainedModel:
    """Build the class `name` under `seed` without touching the caller's random state, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: PreTrainedModel = getattr(transformers, name)(config)
        with torch.no_grad():  # biases start at 0 and norms at 1, which would hide a mistake in either
            for parameter in made.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    made.train(False)
    return made


def heads(hidden: int) -> int:
    """How many attention heads; rotary positions need an even head size."""
    return 2 if hidden % 4 == 0 else 1


def common(hidden: int, layers: int) -> dict[str, Any]:
    """What most configs call their sizes."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads(hidden),
        "max_position_embeddings": POSITIONS,
        "initializer_range": SPREAD,
        **TOKENS,
    }


def gated(hidden: int, ffn: int, layers: int) -> dict[str, Any]:
    """`common`, a feed-forward network and one key-value head."""
    return common(hidden, layers) | {"intermediate_size": ffn, "num_key_value_heads": 1}


def decoder(name: str, kind: str | None = None, **extra: Any) -> Builder:
    """A builder of `{name}ForCausalLM` (or the class `kind`); `extra` are config values beyond the common ones."""
    cls = kind or f"{name}ForCausalLM"

    def build(
        hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any
    ) -> PreTrainedModel:
        return model(cls, config(name, **(gated(hidden, ffn, layers) | extra | more)), seed)

    return build


def renamed(name: str, kind: str, names: Mapping[str, str], **extra: Any) -> Builder:
    """A builder of the class `kind`, whose config has `names` of its own for the values of `gated`: ours -> its own.

    Those that `names` leaves out it does not take.
    """

    def build(
        hidden: int = HIDDEN, ffn: int = FFN, layers: int = LAYERS, seed: int = 0, **more: Any
    ) -> PreTrainedModel:
        ours = gated(hidden, ffn, layers)
        settings = TOKENS | {"vocab_size": VOCABULARY} | {theirs: ours[own] for own, theirs in names.items()}
        return model(kind, config(name, **(settings | extra | more)), seed)

    return build
