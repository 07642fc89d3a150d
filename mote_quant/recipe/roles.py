"""What a parameter is for. Every parameter of a model has exactly one of these roles."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "routed", "shared", "router", "attention", "embedding", "head", "norm", "vision", "projector", "ffn", "other"
]
ROLES: tuple[str, ...] = get_args(Role)
