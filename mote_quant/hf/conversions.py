"""Keys of a model's experts on their way from and to files, which transformers may merge, split or rename.

Most families store one weight an expert and have transformers stack them into a fused parameter while loading. Where we
took the experts apart, the same keys hold packed bytes and must stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter


class _SparingConverter(WeightConverter):  # type: ignore[misc]
    """A converter of the model's own that passes over the keys that `spared` matches."""

    __slots__ = ("spared",)
    spared: re.Pattern[str]

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        if self.spared.match(source_key):
            return source_key, None
        renamed: tuple[str, str | None] = super().rename_source_key(source_key)
        return renamed

    def reverse_transform(self) -> Any:
        # Saving starts from the fused names, which no expert of ours has.
        return _copy(self, WeightConverter).reverse_transform()


def spare(conversions: Sequence[Any], paths: Sequence[str]) -> list[Any]:
    """`conversions`, none of which touches the linear layers of experts at `paths`."""
    if not paths:
        return list(conversions)
    spared = re.compile(rf"({'|'.join(map(re.escape, paths))})\.\d+\.(gate|up|down)_proj\.")
    return [_sparing(entry, spared) if isinstance(entry, WeightConverter) else entry for entry in conversions]


def merges(model: nn.Module, path: str, fused: str) -> bool:
    """Whether transformers by itself would merge what we store of the experts at `path` into their parameter `fused`.

    It then refuses our files, for their shapes, where mote_quant is not imported.
    """
    key = f"{path}.0.up_proj.weight"
    converters = [c for c in get_model_conversion_mapping(model, add_legacy=False) if isinstance(c, WeightConverter)]
    return any(converter.rename_source_key(key)[0] == f"{path}.{fused}" for converter in converters)


def _sparing(converter: Any, spared: re.Pattern[str]) -> _SparingConverter:
    made = _copy(converter, _SparingConverter)
    made.spared = spared
    return made  # type: ignore[no-any-return]


def _copy(converter: Any, kind: type) -> Any:
    made = kind(
        list(converter._original_source_patterns),
        list(converter._original_target_patterns),
        converter.operations,
        converter.force_cpu,
    )
    made.scope_prefix, made.base_model_prefix = converter.scope_prefix, converter.base_model_prefix
    return made
