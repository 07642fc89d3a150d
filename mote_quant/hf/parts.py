"""A model saved in parts: what `save_pretrained` writes, for who cannot hold all of it at once."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from mote_quant.hf.structure import structure_of

INDEX = "model.safetensors.index.json"


def part_to_save(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors `names` of the state dict under the names that files have them by; of tied ones, one."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    # Views that are not contiguous (of experts taken apart where they lie) are nobody's ties, and break the search.
    whole = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_contiguous() or name in names}
    state = remove_tied_weights_from_state_dict({n: t.contiguous() for n, t in whole.items()}, cast(Any, model))
    part = {name: state[name] for name in names if name in state and name not in ignored}
    saved: dict[str, Tensor] = revert_weight_conversion(cast(Any, model), part)
    return saved


def save_config(model: nn.Module, folder: Path) -> None:
    """Write `config.json` (and how to generate) of a finished model of ours."""
    ours = cast(Any, model)
    ours.config.architectures = [type(model).__name__]
    ours.config.dtype = str(ours.dtype).removeprefix("torch.")
    ours.config.quantization_config.structure = structure_of(model, latent=False).to_dict()
    ours.config.save_pretrained(folder)
    if ours.can_generate():
        ours.generation_config.save_pretrained(folder)


def save_index(shards: Mapping[str, Collection[str]], total_bytes: int, folder: Path) -> None:
    """Say which of the files `shards` has which tensor."""
    weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
