"""The order in which a training run sees its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class Schedule(Dataset[Any]):  # type: ignore[misc,unused-ignore]
    """The samples of a whole training run in order: epoch after epoch, each shuffled under the seed.

    What a step sees is a function of the seed and the step alone, so a resumed run sees what the first would have.
    """

    def __init__(self, samples: Sequence[Any], total: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = []
        while len(order) < total:
            order += torch.randperm(len(samples), generator=generator).tolist()
        self._samples = samples
        self._order = order[:total]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Any:
        return self._samples[self._order[index]]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-ready: nothing here, the step says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
