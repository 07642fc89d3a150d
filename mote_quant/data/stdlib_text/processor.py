"""The tokenizer of the embedded text model: byte-level BPE, trained in place in seconds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mote_quant.data.stdlib_text.corpus import documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
PAD, END = "<pad>", "<end>"
_LEARNED_FROM = 1_000_000


@cache
def build_processor() -> PreTrainedTokenizerFast:
    """Learned from the first million characters of the training files; the same wherever the files are the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\n".join(documents()["train"])[:_LEARNED_FROM]], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
