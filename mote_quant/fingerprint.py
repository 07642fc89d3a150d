"""What makes a run this run, and how two runs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.data.source import Source
from mote_quant.hf.loading import load_model
from mote_quant.recipe import Recipe
from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import Quantize, Train

_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version")


def fingerprint_of(
    recipe: Recipe,
    model: nn.Module,
    open_data: Callable[[str, int | None], Source],
    open_teacher: Callable[[str], nn.Module] = load_model,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """The resolved recipe, the model's weights and config, the data, and the weights of teachers where there are any.

    `tensors` are those of the model's state dict, for who wants a word in how they are read.
    """
    named = [step.config for step in recipe.pipeline]
    wanted = {(c.data, c.max_length) for c in named if isinstance(c, Train)}
    wanted |= {
        (c.calibration.data, c.calibration.max_length) for c in named if isinstance(c, Quantize) and c.calibration
    }
    sources = {f"{name}@{length}" if length else name: (name, length) for name, length in sorted(wanted, key=str)}
    # As a list, for the order of `bits` decides which rule wins.
    values = settings(recipe)
    values["bits"] = [{target: spec} for target, spec in values["bits"].items()]
    teachers = sorted({c.distill.teacher for c in named if isinstance(c, Train) and c.distill})
    taught = {"teacher": {name: weights_hash(open_teacher(name)) for name in teachers}} if teachers else {}
    return {
        "recipe": values,
        "model": weights_hash(model) if tensors is None else hash_of(tensors),
        "config": config_hash(model),
        "data": {key: open_data(*source).fingerprint for key, source in sources.items()},
        **taught,
    }


def config_hash(model: nn.Module) -> str:
    """sha256 of what a transformers config says of the model: activation, norms, positions, ..."""
    values: dict[str, Any] = cast(Any, model).config.to_dict()
    told = {key: value for key, value in values.items() if key not in _NOT_OF_THE_MODEL}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of everything in the state dict."""
    return hash_of(model.state_dict().items())


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """`weights_hash` of a state dict's items."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        octets = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(cast(Any, octets.numpy()))
    return digest.hexdigest()


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, each with its place; empty when they are the same."""
    differing = [key for key in sorted({*known, *now}) if known.get(key) != now.get(key)]
    return [_difference(key, known.get(key), now.get(key)) for key in differing]


def _difference(key: str, known: Any, now: Any) -> str:
    known, now = _as_mapping(known), _as_mapping(now)
    if isinstance(known, dict) and isinstance(now, dict):
        parts = [part for part in sorted({*known, *now}) if known.get(part) != now.get(part)]
        return "; ".join(_difference(f"{key}.{part}", known.get(part), now.get(part)) for part in parts)
    return f"{key} was {_short(known)}, is now {_short(now)}"


def _as_mapping(value: Any) -> Any:
    return {str(index): item for index, item in enumerate(value)} if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
