"""The processor of the embedded model: a small byte-level BPE tokenizer and a SigLIP image processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mote_quant.data.digits_vqa.facts import DIALLING_CODES, ELEMENTS, FACTS
from mote_quant.data.digits_vqa.questions import LINES, PLACES, questions
from mote_quant.data.digits_vqa.scenes import CELL, HEIGHT, WIDTH

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

PAD, END, IMAGE = "<pad>", "<end>", "<image>"
VOCABULARY = 4096
"""More than the corpus can fill: every word of it becomes one token; digits stay single."""


def _corpus() -> Iterator[str]:
    from random import Random

    yield from (*PLACES, *LINES, *ELEMENTS, *DIALLING_CODES.values(), "yes", "no", "nothing", "0123456789abcdef")
    stream = questions(Random("tokenizer corpus"))
    yield from (next(stream).text for _ in range(40 * len(FACTS)))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Trained in place on the words of the questions; the same on every machine."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[PAD, END, IMAGE], show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, extra_special_tokens=[IMAGE]
    )


def build_processor() -> LlavaProcessor:
    """Saves and reloads by `AutoProcessor.from_pretrained`; scenes keep their size, one image token a cell."""
    from transformers import LlavaProcessor, SiglipImageProcessorPil

    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": HEIGHT, "width": WIDTH}, do_resize=False),
        tokenizer=build_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
    )
