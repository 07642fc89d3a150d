"""What makes a run this run, and how two runs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.data.reading import USUAL, Reading, reading_of
from mote_quant.data.source import Source
from mote_quant.hf.loading import load_model
from mote_quant.hf.teacher import known_hash
from mote_quant.recipe import Recipe
from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import Quantize, StepConfig, Train

_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version")


def fingerprint_of(
    recipe: Recipe,
    model: nn.Module,
    open_data: Callable[..., Source],
    open_teacher: Callable[[str], nn.Module] = load_model,
    tensors: Iterable[tuple[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """The resolved recipe, the model's weights and config, the data, and the weights of teachers where there are any.

    `tensors` are those of the model's state dict, for who wants a word in how they are read.
    """
    named = [step.config for step in recipe.pipeline]
    sources = {key: data for config in named for key, data in _data_of(config).items()}
    # As lists, for the order of `bits` and of `learning_rates` decides which rule wins.
    values = settings(recipe)
    values["bits"] = [{target: spec} for target, spec in values["bits"].items()]
    for step in values["pipeline"]:
        # Only says when to give up: a run that goes on with more of it is the run that had more all along.
        step.get("train", {}).pop("bad_rows", None)
        if rates := step.get("train", {}).get("learning_rates"):
            step["train"]["learning_rates"] = [{target: rate} for target, rate in rates.items()]
    teachers = {c.distill.teacher: c.distill.cache for c in named if isinstance(c, Train) and c.distill}
    hashes = {name: _of_teacher(name, teachers[name], open_teacher) for name in sorted(teachers)}
    taught = {"teacher": hashes} if hashes else {}
    return {
        "recipe": values,
        "model": weights_hash(model) if tensors is None else hash_of(tensors),
        "config": config_hash(model),
        "data": {key: open_data(*sources[key]).fingerprint for key in sorted(sources)},
        **taught,
    }


def _of_teacher(name: str, cache: str | None, open_teacher: Callable[[str], nn.Module]) -> str:
    """The hash of its weights; one that a cache of what it says knows need not be opened for that."""
    return (cache and known_hash(name, cache)) or weights_hash(open_teacher(name))


def _data_of(config: StepConfig) -> dict[str, tuple[Any, ...]]:
    """What a step reads -> what its data are opened with."""
    if isinstance(config, Quantize):
        calibration = config.calibration
        return {} if calibration is None else _named([calibration.data], calibration.max_length, USUAL)
    return _named(config.sources, config.max_length, reading_of(config)) if isinstance(config, Train) else {}


def _named(names: Iterable[str], length: int | None, reading: Reading) -> dict[str, tuple[Any, ...]]:
    way = "" if reading == USUAL else " " + json.dumps(reading.described(), sort_keys=True)
    more = () if reading == USUAL else (reading,)
    return {(f"{name}@{length}" if length else name) + way: (name, length, *more) for name in names}


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
