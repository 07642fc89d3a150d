"""Names in files and names in the model: transformers renames keys of older or other layouts while it loads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from mote_quant.errors import ArtifactError


def module_names(skeleton: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """Name of a module in the files -> its name in the model. ArtifactError for one that loading takes apart."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, state = cast(Any, skeleton).base_model_prefix, skeleton.state_dict()
    names = {}
    for name in stored:
        key, converted = rename_source_key(f"{name}.weight", renamings, converters, prefix, state)
        if converted is not None:
            raise ArtifactError(
                f"{name} cannot be read quantized: {type(skeleton).__name__} stores it in another form than it uses. "
                "Take the full-precision weights"
            )
        names[name] = key.removesuffix(".weight")
    return names
