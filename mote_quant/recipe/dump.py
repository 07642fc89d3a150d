"""A recipe as YAML."""

from __future__ import annotations

import yaml

from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import Recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, base and overrides merged in and defaults written out; loading it gives an equal recipe."""
    return yaml.dump(settings(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """SafeDumper, but exact: it would fold a NEL or a line separator like a space."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Dumper.add_representer(str, _text)
