"""The teacher of a distillation: a frozen model whose predictions another one learns."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from torch import nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import ModelError, MoteError, SaveError
from mote_quant.hf.integrity import sha256, write_atomic
from mote_quant.hf.loading import check_finite, check_model, folder_of, load_model, load_processor
from mote_quant.hf.verified import identity

_HASHES = "teachers.json"
_OF_A_MODEL = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def open_teacher(name: str, student: nn.Module, processor: Any = None) -> nn.Module:
    """The model `name` (a folder or a hub id), in eval mode and without gradients, to teach `student`.

    Raises ModelError where the two do not speak of the same tokens (by their sizes, and by their tokenizers where
    `processor`, the student's, is given), or only the student sees images; and whatever loading raises.
    """
    try:
        teacher = load_model(name)
        check_model(teacher)
        check_finite(teacher)
    except MoteError as error:
        raise type(error)(f"distill.teacher: {error.message}") from error
    _check_same_tokens(name, teacher, student)
    if processor is not None:
        _check_same_words(name, load_processor(name), processor)
    return teacher.eval().requires_grad_(False)


def check_same_states(name: str, teacher: nn.Module, student: nn.Module) -> None:
    """ModelError where the two do not have as many decoder layers, of the same width."""
    theirs, ours = (_layers_and_width(model) for model in (teacher, student))
    if theirs != ours:
        raise ModelError(
            f"distill.hidden: {name} has {theirs[0]} decoder layers of width {theirs[1]}, the model it is to teach "
            f"{ours[0]} of width {ours[1]}: take a teacher of the same shape, or leave hidden out"
        )


def _layers_and_width(model: nn.Module) -> tuple[int, int]:
    config = cast(Any, model).config.get_text_config()
    return len(decoder_layers(model)), int(config.hidden_size)


def known_hash(name: str, cache: str) -> str | None:
    """The hash of the weights of the model `name` as `cache` remembers it; None where it does not know these files."""
    try:
        return cast("dict[str, str]", json.loads((Path(cache) / _HASHES).read_text())).get(_files_hash(name))
    except (OSError, ValueError, AttributeError):
        return None


def remember_hash(name: str, cache: str, weights: str) -> None:
    """Have `cache` know the hash of the weights of the model `name`, so that it need not be loaded. SaveError."""
    path = Path(cache) / _HASHES
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            known = json.loads(path.read_text()) if path.exists() else {}
            write_atomic(path, json.dumps(known | {_files_hash(name): weights}, indent=1))
    except (OSError, ValueError, TypeError) as error:
        raise SaveError(f"{path} could not be written: {error}; free space, or delete it") from error


def _files_hash(name: str) -> str:
    """sha256 over a model's weight files and what its config says."""
    folder = folder_of(name)
    files = sorted(path for path in folder.iterdir() if path.suffix in _OF_A_MODEL)
    listed = "".join(f"{path.name} {_hash_of(path, identity(path))}\n" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


@cache
def _hash_of(path: Path, state: str) -> str:
    """sha256 of a file in this state: a run asks about its teacher several times, and reads its files once."""
    return sha256(path)


def _check_same_tokens(name: str, teacher: nn.Module, student: nn.Module) -> None:
    theirs, ours = (cast(Any, model).config for model in (teacher, student))
    sizes = [config.get_text_config().vocab_size for config in (theirs, ours)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"distill.teacher: {name} predicts {sizes[0]} tokens, the model it is to teach {sizes[1]}: "
            "take a teacher with the same vocabulary"
        )
    if hasattr(ours, "vision_config") and not hasattr(theirs, "vision_config"):
        raise ModelError(f"distill.teacher: {name} sees no images, the model it is to teach does: take another teacher")


def _check_same_words(name: str, theirs: Any, ours: Any) -> None:
    words = [_vocabulary(processor) for processor in (theirs, ours)]
    if None not in words and words[0] != words[1]:
        raise ModelError(
            f"distill.teacher: the tokenizer of {name} is not that of the model it is to teach: the same number means "
            "another word to each; take a teacher with the same vocabulary"
        )


def _vocabulary(processor: Any) -> dict[str, int] | None:
    """Word -> number; None without a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
