"""Dense models and their processors from a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mote_quant.errors import ArtifactError, BadWeightsError, ModelError, MoteError
from mote_quant.hf.skeleton import _language_config, _model_class, read_config


def load_model(name: str) -> nn.Module:
    """The model in folder `name`, or the hub model of that id, in the types its files have."""
    folder = Path(name)
    try:
        if folder.is_dir():
            config = read_config(folder)
        else:
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(name)
        model: nn.Module = _model_class(config).from_pretrained(name, dtype="auto")
        return model
    except MoteError:
        raise
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        kind = ArtifactError if folder.is_dir() else ModelError
        hint = (
            "copy or download it again"
            if folder.is_dir()
            else "give the path of a model folder, or a hub id while online"
        )
        raise kind(f"{name} could not be loaded: {first}; {hint}") from error


def load_processor(name: str) -> Any | None:
    """The processor (for a VLM) or tokenizer saved beside a model; None when there is neither."""
    from transformers import AutoProcessor, AutoTokenizer

    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def check_model(model: Any) -> None:
    """ModelError unless `model` is a decoder-only language model of transformers with a head and real weights."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is needed, not {model!r}: load it with AutoModelForCausalLM.from_pretrained")
    config = _language_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder model; a decoder-only one is needed (AutoModelForCausalLM)")
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{kind} has no language-model head; load it with AutoModelForCausalLM.from_pretrained")
    hollow = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
    if hollow is not None:
        raise ModelError(f"{hollow} is on the meta device and has no weights; load the model with from_pretrained")


def check_finite(model: nn.Module) -> None:
    """BadWeightsError naming the first floating-point tensor with NaN or infinite values."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadWeightsError(f"{name} holds NaN or infinite values; repair or download the model again")
