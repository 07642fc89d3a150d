"""Pico models that come with experts, in every family of `docs/models.md`: `PICO_MOE[name]()` builds one."""

from __future__ import annotations

from eval.families.builders.experts import EXPERTS as PICO_MOE

__all__ = ["PICO_MOE"]
