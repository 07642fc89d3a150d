"""Processors for the pico models: one token a character, images by Pillow, nothing from the hub."""

from __future__ import annotations

import io
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from tests import pico

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, VISION_START, VISION_END, VIDEO = "<image>", "<vision>", "</vision>", "<video>"
_NAMED = [PAD, BEGIN, END, UNKNOWN, "<4>", IMAGE, VISION_START, VISION_END, VIDEO, "<9>"]
CHARACTERS = " ?.,:\n" + string.ascii_letters + string.digits
CHAT = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<vision><image></vision>{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}it: {% endif %}"
)
"""A chat template in the words that the tokenizer has."""


def tokenizer() -> PreTrainedTokenizerFast:
    """The ids of `tests.pico`: ten named tokens, then a token a character."""
    assert _NAMED.index(IMAGE) == pico.IMAGE_TOKEN
    assert len(_NAMED) == pico.FIRST_WORD
    vocabulary = {token: index for index, token in enumerate([*_NAMED, *CHARACTERS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    plain.add_special_tokens(_NAMED)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
    )


def llava(chat_template: str | None = None) -> LlavaProcessor:
    """Every image becomes 16 x 16 pixels and four tokens."""
    size = {"height": pico.IMAGE_SIDE, "width": pico.IMAGE_SIDE}
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=size),
        tokenizer=tokenizer(),
        patch_size=pico.PATCH_SIDE,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


class ImagesOnly(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's without its video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id, self.video_token_id = pico.IMAGE_TOKEN, pico.VIDEO_TOKEN
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen2_5_vl(chat_template: str | None = None) -> ImagesOnly:
    """Images keep their shape: a token for every 8 x 8 pixels of them."""
    pixels = {"shortest_edge": 64, "longest_edge": 1024}
    return ImagesOnly(
        Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=pixels),
        tokenizer(),
        chat_template,
    )


def idefics3(chat_template: str | None = None) -> Idefics3Processor:
    """SmolVLM's kind: [rows, images, 3, side, side], rows with fewer images are filled up."""
    side = {"longest_edge": pico.IMAGE_SIDE}
    return Idefics3Processor(
        Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False),
        tokenizer(),
        image_seq_len=1,
        chat_template=chat_template,
    )


PROCESSORS: dict[str, Callable[..., Any]] = {"llava": llava, "qwen2_5_vl": qwen2_5_vl}
"""For the pico families of these names."""


def png(seed: int, width: int = 16, height: int = 16) -> bytes:
    """A picture of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def album(folder: Path, rows: Sequence[dict[str, Any]], name: str = "album.jsonl") -> str:
    """Write rows as JSONL, and 0.png to 3.png of different shapes beside them; returns the path."""
    for index, size in enumerate([(16, 16), (24, 16), (16, 32), (16, 16)]):
        (folder / f"{index}.png").write_bytes(png(index, *size))
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)
