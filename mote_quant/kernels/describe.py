"""What computes packed weights on this machine: nothing here is a guess, it is what the op table would take."""

from __future__ import annotations

from typing import Any

import torch

from mote_quant.kernels.cpu import library
from mote_quant.kernels.table import implementations


def describe() -> dict[str, Any]:
    """`kernels`: op -> implementation; `cpu`: the level in force, those there are, why there is none; `threads`."""
    level = library.level()
    return {
        "kernels": implementations(),
        "cpu": {
            "level": None if level is None else level.name,
            "levels": [found.name for found in library.levels()],
            "reason": library.why_not(),
        },
        "threads": torch.get_num_threads(),
    }
