"""The processor of a vision-language model: whether it is one, what it is asked, what it is set to."""

from __future__ import annotations

import json
from typing import Any

from mote_quant.errors import DataError


def image_processor_of(processor: Any, name: str) -> Any:
    """`processor`, if it takes images and text; DataError for a bare tokenizer."""
    kind = type(processor).__name__
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise DataError(
            f"{name} needs a processor that takes images, of a vision-language model; this is a {kind}, which takes "
            "text only. Pass the model's own processor, or choose other data"
        )
    if image_token_of(processor) is None and getattr(processor, "chat_template", None) is None:
        raise DataError(f"{name} needs a processor that says where images go; this {kind} has no chat template")
    return processor


def image_token_of(processor: Any) -> str | None:
    """What stands for an image in a prompt; None where only a chat template can say it."""
    token: str | None = getattr(processor, "image_token", None)
    return token


def question(processor: Any, prompt: str, images: int) -> str:
    """The text of a prompt about so many images, which come first: by the chat template, else by image tokens.

    A prompt with image tokens of its own has been formatted already and is taken as it is.
    """
    token = image_token_of(processor) or ""
    if token and token in prompt:
        return prompt
    if getattr(processor, "chat_template", None) is None:
        # Some models tell two images apart by what stands between them.
        return "\n".join([token] * images) + prompt
    content = [{"type": "image"}] * images + ([{"type": "text", "text": prompt}] if prompt else [])
    turn = {"role": "user", "content": content}
    rendered: str = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return rendered


def settings_of(processor: Any) -> list[Any]:
    """Whatever decides how a sample looks to the model, as JSON values: sizes, normalization, template, vocabulary."""
    settings = json.loads(json.dumps(processor.to_dict(), default=lambda value: type(value).__name__))
    return [settings, getattr(processor, "chat_template", None), processor.tokenizer.get_vocab()]
