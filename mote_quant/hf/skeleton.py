"""Models without weights: from a config, or as the shadow of a live model. Plans and byte counts are made on these."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn

from mote_quant.errors import ArtifactError, ModelError, first_line
from mote_quant.hf import stored
from mote_quant.hf.stored import METHOD, WHERE, StoredConfig
from mote_quant.hf.structure import Structure, rebuild, structure_of


def shadow(model: nn.Module, structure: Structure | None = None) -> nn.Module:
    """A meta-device model of the same structure (or of `structure`), types and ties as `model`.

    ModelError for other libraries' layers.
    """
    config = copy.deepcopy(language_config(model))
    _refuse_foreign(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    skeleton = _on_meta(type(model), config, cast(Any, model).dtype)
    rebuild(skeleton, structure or structure_of(model, latent=True))
    return skeleton


def language_config(model: nn.Module) -> Any:
    """The config of a language model or VLM; ModelError for anything else."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    if not hasattr(text, "vocab_size"):
        raise ModelError(f"{type(model).__name__} is no language model or vision-language model of transformers")
    return config


def skeleton_of(config: Any) -> nn.Module:
    """A meta-device model of `config` (a transformers config), with our modules where the config says so."""
    ours = stored_config(config)
    config = copy.deepcopy(config)
    if ours is not None:
        del config.quantization_config
    skeleton = _on_meta(model_class(config), config, dtype_of_config(config))
    if ours is not None:
        rebuild(skeleton, Structure.from_dict(ours.structure))
    return skeleton


def _on_meta(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    # As from_pretrained does it: buffers that ask for float32 (rotary tables) stay float32 in a shorter model.
    with torch.device("meta"):
        model: nn.Module = kind._from_config(config, dtype=dtype)
    return model.eval()


def dtype_of_config(config: Any) -> torch.dtype:
    """The type that a config gives the weights; float32 without a word."""
    dtype = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else cast(torch.dtype, dtype)


def quantization_of(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a transformers config; None for a dense model."""
    found = getattr(config, "quantization_config", None)
    return found if found is None or isinstance(found, dict) else cast("dict[str, Any]", found.to_dict())


def foreign_method(config: Any) -> str | None:
    """The name of another library's quantization method; None for a model that is dense or ours."""
    values = quantization_of(config)
    if values is None or values.get("quant_method") == METHOD:
        return None
    method = values.get("quant_method")
    return str(getattr(method, "value", method))


def stored_config(config: Any) -> StoredConfig | None:
    """What a transformers config says of our files; None without a word, ArtifactError when it cannot be read."""
    _refuse_foreign(config)
    values = quantization_of(config)
    return None if values is None else stored.read_config(values)


def _refuse_foreign(config: Any) -> None:
    method = foreign_method(config)
    if method is not None:
        raise ModelError(
            f"this model is already quantized with {method}, and only its files say how: give the path of its folder"
        )


def model_class(config: Any) -> Any:
    """The class of transformers that a config is for; ModelError when it is no decoder language model or VLM."""
    import transformers

    for name in getattr(config, "architectures", None) or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ModelError(f"{type(config).__name__} is no decoder language model or vision-language model of transformers")


def _typed(config: Any, folder: Path) -> Any:
    """Where a config says nothing of the type of its weights, transformers takes that of the first in the files."""
    files = sorted(folder.glob("*.safetensors"))
    if files and not any(getattr(part, "dtype", None) for part in (config, config.get_text_config())):
        with safe_open(files[0], framework="pt") as file:
            dtypes = (file.get_tensor(name).dtype for name in file.keys())  # noqa: SIM118 (no mapping)
            config.dtype = next((dtype for dtype in dtypes if dtype.is_floating_point), None)
    return config


def read_config(folder: Path) -> Any:
    """The transformers config of a model folder; ModelError when there is none or it cannot be read."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json: it is no model folder")
    try:
        values = json.loads(path.read_text())
        # transformers takes this for granted.
        if isinstance(values, dict) and not isinstance(values.get("quantization_config"), dict | None):
            raise ArtifactError(f"{WHERE} cannot be read: expected a mapping; copy or build the model again")
        return _typed(AutoConfig.from_pretrained(str(folder)), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
