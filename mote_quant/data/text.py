"""Text as training samples: documents are tokenized, joined, and cut into blocks of equal length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mote_quant.data.source import IGNORED, Sample
from mote_quant.errors import DataError

DEFAULT_LENGTH = 512
_NO_LIMIT = 1_000_000


def tokenizer_of(processor: Any, name: str) -> Any:
    """The tokenizer in (or that is) `processor`; DataError when there is none."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer is None:
        raise DataError(
            f"{name} needs the model's tokenizer, or its processor for images: save it beside the model, or pass "
            "processor="
        )
    return tokenizer


def block_length(tokenizer: Any, max_length: int | None) -> int:
    """Tokens a block: what was asked for, else the tokenizer's limit, at most 512."""
    limit = int(getattr(tokenizer, "model_max_length", _NO_LIMIT) or _NO_LIMIT)
    return max_length or min(limit, DEFAULT_LENGTH)


def blocks(documents: Iterable[str], tokenizer: Any, length: int) -> list[Sample]:
    """Samples {"input_ids": int64 [length], "bytes": UTF-8 bytes of the tokens that are predicted}. A rest is dropped.

    Every document ends with the tokenizer's end token, where it has one.
    """
    ids: list[int] = []
    sizes: list[int] = []
    for document in documents:
        fast = bool(tokenizer.is_fast)
        encoded = tokenizer(document, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        tokens = encoded["input_ids"]
        ids += tokens
        sizes += _byte_sizes(document, encoded["offset_mapping"]) if fast else _shares(document, len(tokens))
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            sizes.append(0)
    starts = range(0, len(ids) - length + 1, length)
    return [
        {"input_ids": torch.tensor(ids[start : start + length]), "bytes": sum(sizes[start + 1 : start + length])}
        for start in starts
    ]


def _byte_sizes(document: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes of each token; a character that several tokens share counts with the first of them."""
    sizes, reached = [], 0
    for start, end in offsets:
        sizes.append(len(document[max(start, reached) : end].encode()))
        reached = max(reached, end)
    return sizes


def _shares(document: str, tokens: int) -> list[int]:
    """A document's UTF-8 bytes dealt out evenly: tokenizers written in Python do not say what each token covers."""
    total = len(document.encode())
    return [total * (index + 1) // tokens - total * index // tokens for index in range(tokens)]


def collate_blocks(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Blocks as one batch; every token is a label."""
    ids = torch.stack([sample["input_ids"] for sample in samples])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def answer_sample(prompt: str, completion: str, tokenizer: Any) -> Sample:
    """A sample that learns `completion` and the end token, given `prompt`."""
    first = tokenizer(prompt, add_special_tokens=True, verbose=False)["input_ids"]
    if first and first[-1] == tokenizer.eos_token_id:
        first = first[:-1]
    second = tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    labels = [IGNORED] * len(first) + second + end
    return {"input_ids": first + second + end, "labels": labels, "bytes": len(completion.encode())}


def collate_answers_text(samples: Sequence[Sample], pad: int) -> dict[str, Tensor]:
    """Prompt-and-completion samples as one batch, padded on the right."""
    ids = pad_right([sample["input_ids"] for sample in samples], pad)
    mask = pad_right([[1] * len(sample["input_ids"]) for sample in samples], 0)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": pad_right([s["labels"] for s in samples], IGNORED),
    }


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of token values as one int64 tensor [rows, longest]."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.int64)
