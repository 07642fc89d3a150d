"""How the processes of one training share its model."""

from __future__ import annotations

from typing import Literal, get_args

Sharding = Literal["ddp", "fsdp2"]
"""Each holds all of the model (DDP), or its part of every weight (FSDP2)."""
SHARDINGS: tuple[str, ...] = get_args(Sharding)
