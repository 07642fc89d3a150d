"""A data source for pico models: seeded random batches of whatever the family takes."""

from __future__ import annotations

from eval.families.builders import source_for

__all__ = ["source_for"]
