"""The teacher of a distillation: a frozen model whose predictions another one learns."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from mote_quant.errors import ModelError, MoteError
from mote_quant.hf.loading import check_finite, check_model, load_model, load_processor


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
