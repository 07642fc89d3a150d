"""A recipe as YAML."""

from __future__ import annotations

import yaml

from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import Recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, base and overrides merged in and defaults written out; loading it gives an equal recipe."""
    return yaml.safe_dump(settings(recipe), sort_keys=False, allow_unicode=True, width=120)
