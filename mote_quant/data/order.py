"""Orders that follow from a seed."""

from __future__ import annotations

from typing import Any

import torch

from mote_quant.data.source import fingerprint_of


def generator_for(*parts: Any) -> torch.Generator:
    """A generator seeded by JSON-able values: a seed, and what is drawn with it."""
    return torch.Generator().manual_seed(int(fingerprint_of(*parts)[:15], 16))


def shuffled(count: int, *parts: Any) -> list[int]:
    """The numbers below `count` in an order that follows from `parts`."""
    return torch.randperm(count, generator=generator_for(*parts)).tolist()
