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


def end_of(tokenizer: Any) -> list[int]:
    """The end token, where there is one."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def blocks(documents: Iterable[str], tokenizer: Any, length: int) -> list[Sample]:
    """Samples {"input_ids": int64 [length], "bytes": UTF-8 bytes of the tokens that are predicted}. A rest is dropped.

    Every document ends with the tokenizer's end token, where it has one.
    """
    cutter = Cutter(tokenizer, length)
    return [sample for document in documents for sample in cutter.cut(document)]


class Cutter:
    """Joins documents and cuts them into blocks, one document at a time; what is left over begins the next block."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self.rest: tuple[list[int], list[int]] = ([], [])
        """Tokens that fill no block yet, and the bytes of each."""

    def cut(self, document: str) -> list[Sample]:
        """The blocks that are full now."""
        tokens, covered = _tokens(document, self._tokenizer)
        ids, sizes, length = self.rest[0] + tokens, self.rest[1] + covered, self._length
        end = len(ids) - len(ids) % length
        self.rest = ids[end:], sizes[end:]
        return [
            {"input_ids": torch.tensor(ids[start : start + length]), "bytes": sum(sizes[start + 1 : start + length])}
            for start in range(0, end, length)
        ]


def pieces(document: str, tokenizer: Any, length: int) -> list[Sample]:
    """A document by itself, in pieces of at most `length` tokens; the first token of each is not predicted."""
    ids, sizes = _tokens(document, tokenizer)
    # Of a single token there is nothing to learn.
    parts = [slice(start, start + length) for start in range(0, len(ids) - 1, length)]
    return [
        {"input_ids": ids[part], "labels": [IGNORED, *ids[part][1:]], "bytes": sum(sizes[part][1:])} for part in parts
    ]


def _tokens(document: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of a document and its end token, and how many bytes of it each covers."""
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(document, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = list(encoded["input_ids"])
    sizes = _byte_sizes(document, encoded["offset_mapping"]) if fast else _shares(document, len(ids))
    end = end_of(tokenizer)
    return ids + end, sizes + [0] * len(end)


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
    end = end_of(tokenizer)
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
