"""Models and their processors from a folder or a hub id."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, BadWeightsError, ModelError, MoteError, first_line
from mote_quant.hf.skeleton import language_config, model_class, read_config, skeleton_of

_log = logging.getLogger(__name__)
_PIECE = 1 << 22
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OTHER_FORMS = ["original/*", "onnx/*", "*/*.safetensors"]
_PROCESSOR_FILES = ("*token*", "*processor*", "vocab*", "merges*", "*.model")


def load_model(name: str | Path) -> nn.Module:
    """The model in folder `name`, or the hub model of that id, in the types its files have.

    Dense models, models mote-quant wrote, and models quantized as GPTQ, AWQ, compressed-tensors or bitsandbytes: their
    linear layers become packed ones of the same codes and scales. Raises ArtifactError, ModelError.
    """
    from mote_quant.hf.foreign import ForeignCheckpoint, reader_for

    folder = Path(name)
    local = folder.is_dir()
    with as_our_error(name, local):
        config = read_config(folder) if local else _hub_config(str(name))
        reader = reader_for(config)
        if reader is not None:
            return ForeignCheckpoint.open(folder if local else downloaded(str(name)), config, reader).load()
        model, info = model_class(config).from_pretrained(str(name), dtype="auto", output_loading_info=True)
        if info["missing_keys"]:
            # transformers fills them with random numbers and a warning.
            raise ArtifactError(f"{name} lacks {', '.join(sorted(info['missing_keys']))}; copy or download it again")
        return cast(nn.Module, model)


def folder_of(name: str | Path) -> Path:
    """The folder `name`, or the one that the hub model of that id is kept in (downloaded where it was not)."""
    folder = Path(name)
    with as_our_error(name, folder.is_dir()):
        return folder if folder.is_dir() else downloaded(str(name))


def called(model: nn.Module, name: str | Path) -> nn.Module:
    """`model`, which says that it is `name` (a hub id), not the folder that is kept in."""
    if not Path(name).is_dir():
        cast(Any, model).name_or_path = cast(Any, model).config.name_or_path = str(name)
    return model


def skeleton_in(folder: Path) -> nn.Module:
    """What `load_model` would load from `folder`, on the meta device: from its config and the headers of its files."""
    from mote_quant.hf.foreign import ForeignCheckpoint, reader_for

    with as_our_error(folder, local=True):
        config = read_config(folder)
        reader = reader_for(config)
        return skeleton_of(config) if reader is None else ForeignCheckpoint.open(folder, config, reader).skeleton()


def _hub_config(name: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name)


def downloaded(name: str) -> Path:
    """The folder of the hub's cache that hub model `name` lies in: config, weights, tokenizer, chat template."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_OTHER_FORMS))


@contextmanager
def as_our_error(name: str | Path, local: bool) -> Iterator[None]:
    """Whatever goes wrong in opening the model `name` (`local`: a folder) is ArtifactError or ModelError."""
    try:
        yield
    except MoteError:
        raise
    except Exception as error:
        first = first_line(error)
        hint = "copy or download it again" if local else "give the path of a model folder, or a hub id while online"
        kind = ArtifactError if local else ModelError
        raise kind(f"{name} could not be loaded: {first}; {hint}") from error


def load_processor(name: str) -> Any | None:
    """The processor (for a VLM) or tokenizer saved beside a model; None when there is neither."""
    from transformers import AutoProcessor, AutoTokenizer

    folder = Path(name)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _PROCESSOR_FILES):
        return None  # transformers would make up an empty tokenizer from the config
    problem = None
    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(name)
        except Exception as error:  # what tokenizers raise is not even an Exception of a kind
            problem = first_line(error)
    _log.warning("no tokenizer or processor of %s could be read (%s): going on without one", name, problem)
    return None


def check_model(model: Any) -> None:
    """ModelError unless `model` is a decoder-only language model of transformers with a head and real weights."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is needed, not {model!r}: load it with AutoModelForCausalLM.from_pretrained")
    config = language_config(model)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder model; a decoder-only one is needed (AutoModelForCausalLM)")
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{kind} has no language-model head; load it with AutoModelForCausalLM.from_pretrained")
    hollow = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
    if hollow is not None:
        raise ModelError(f"{hollow} is on the meta device and has no weights; load the model with from_pretrained")


def check_finite(model: nn.Module) -> None:
    """BadWeightsError naming the first floating-point tensor with NaN or infinite values."""
    for _ in finite(model.state_dict().items()):
        pass


def finite(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Named tensors as they are; BadWeightsError at the first floating-point one with NaN or infinite values."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not _all_finite(tensor):
            raise BadWeightsError(f"{name} holds NaN or infinite values; repair or download the model again")
        yield name, tensor


def _all_finite(tensor: Tensor) -> bool:
    # In pieces: asking about all of a large embedding at once takes more memory than it has itself.
    return all(bool(torch.isfinite(piece).all()) for piece in torch.split(tensor.flatten(), _PIECE))
