"""How large and how long: the whole benchmark, or a quick run that only shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, int]
QWEN_1_5B: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
PICO: dict[str, Any] = QWEN_1_5B | {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Scale:
    """`shapes` are (rows, columns) of weights, the `headline` ones go into summaries; `copies_bytes` of every weight
    are held in copies for up to 32 tokens, so that they come from memory."""

    shapes: tuple[Shape, ...] = (
        (4864, 896), (896, 4864), (8960, 1536), (1536, 8960), (11008, 2048), (2048, 11008),
    )  # fmt: skip
    headline: tuple[Shape, ...] = ((8960, 1536), (1536, 8960))
    tokens: tuple[int, ...] = (1, 8, 32, 512)
    copies_bytes: int = 150_000_000
    cell_seconds: float = 3.0
    rounds: range = range(5, 31)
    sweep_bytes: int = 1 << 28
    model: dict[str, Any] = field(default_factory=lambda: QWEN_1_5B)
    prompt: int = 128
    new_tokens: int = 10
    repeats: int = 2


FULL = Scale()
QUICK = Scale(
    shapes=((512, 256), (256, 512)),
    headline=((512, 256), (256, 512)),
    copies_bytes=200_000,
    cell_seconds=0.0,
    rounds=range(2, 3),
    sweep_bytes=1 << 22,
    model=PICO,
    prompt=8,
    new_tokens=3,
    repeats=1,
)
