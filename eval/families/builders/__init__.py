"""Pico models of many families: built from their configs with seeded random weights, small enough for any test.

A builder makes one (float32, two decoder layers, hidden 32, feed-forward 48); keywords change sizes, and `**ODD` gives
sizes that no group size or byte packing (4, 5 or 8 to a unit) divides. Built under `torch.device("meta")` they are meta
models. `inputs(model)` gives a batch the model's forward takes, with labels.
"""

from eval.families.builders.base import ODD, VOCABULARY, Builder
from eval.families.builders.batches import inputs, source_for
from eval.families.builders.language import LANGUAGE
from eval.families.builders.vision import VISION

__all__ = ["LANGUAGE", "ODD", "VISION", "VOCABULARY", "Builder", "inputs", "source_for"]
