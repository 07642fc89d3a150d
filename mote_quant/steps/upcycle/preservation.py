"""The preservation receipt: how far up-cycling moved the model's outputs before any training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_BATCH, _LENGTH, _SEED = 2, 16, 0


@dataclass(frozen=True)
class Receipt:
    """Logits before and after: largest absolute difference, and the norm of the difference over that of the logits."""

    max_abs: float
    relative: float

    @classmethod
    def between(cls, before: Tensor, after: Tensor) -> Receipt:
        """Compare two logit tensors of the same shape."""
        difference = (after.double() - before.double()).flatten()
        norm = before.double().flatten().norm().clamp_min(1e-30)
        return cls(float(difference.abs().max()), float(difference.norm() / norm))

    def to_dict(self) -> dict[str, float]:
        """JSON-ready."""
        return asdict(self)


def probe(model: nn.Module) -> Tensor:
    """Logits [2, 16, vocabulary] in float32 for a fixed batch of token ids (text only, so any LM or VLM takes it)."""
    config = cast(Any, model).config.get_text_config()
    length = min(_LENGTH, int(getattr(config, "max_position_embeddings", _LENGTH) or _LENGTH))
    ids = text_ids(model, _BATCH, length)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return cast(Tensor, model(input_ids=ids, use_cache=False).logits).float()
    finally:
        model.train(was_training)


def text_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Seeded token ids [batch, length] without those that stand for images, on the model's device."""
    config = cast(Any, model).config
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(0, config.get_text_config().vocab_size, (batch, length), generator=generator)
    return _without_image_tokens(ids, config).to(next(model.parameters()).device)


def _without_image_tokens(ids: Tensor, config: Any) -> Tensor:
    names = ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    special = {int(token) for name in names if (token := getattr(config, name, None)) is not None}
    plain = next(token for token in range(config.get_text_config().vocab_size) if token not in special)
    for token in special:
        ids = ids.masked_fill(ids.eq(token), plain)
    return ids
