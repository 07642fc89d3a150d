"""Questions about images and their answers as model inputs, through any vision-language processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mote_quant.data.chat import Piece, encode
from mote_quant.data.processors import question
from mote_quant.data.source import IGNORED
from mote_quant.data.text import end_of
from mote_quant.errors import DataError


@dataclass(frozen=True)
class Turn:
    """A prompt about `images` (whatever the processor takes for one) and its answer; `where` is for errors.

    Of a conversation, `prompt` is what its template has written up to the first answer, and `rest` all that follows.
    """

    prompt: str
    answer: str
    images: Sequence[Any]
    where: str = "a sample"
    rest: Sequence[Piece] = ()


def collate_answers(processor: Any, turns: Sequence[Turn]) -> dict[str, Tensor]:
    """Model inputs, padded on the right: images and prompt, then the answer and the end token.

    `labels` cover the answer and the end token alone (of a conversation, all that the assistant says). Prompt and
    answer are tokenized apart, so the model sees in training exactly the prompt it is later asked to continue. Values
    by token are known by their shape [rows, tokens]; everything else is passed on as the processor batched it.
    DataError for what the processor refuses.
    """
    tokenizer = processor.tokenizer
    encoded = _encode(processor, turns)
    spoken = _answers(tokenizer, turns)
    answers = [ids for ids, _ in spoken]
    kept = _prompts(encoded, tokenizer.eos_token_id)
    fill = {"input_ids": tokenizer.pad_token_id or 0}
    batch = {
        name: _extended(name, value, kept, answers, fill.get(name, 0)) if _by_token(value, kept) else value
        for name, value in encoded.items()
    }
    labels = [
        torch.cat([torch.full((int(row.sum()),), IGNORED), learned])
        for row, (_, learned) in zip(kept, spoken, strict=True)
    ]
    return batch | {"labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}


def _encode(processor: Any, turns: Sequence[Turn]) -> Mapping[str, Tensor]:
    try:
        return _processed(processor, turns)
    # The processor is foreign code, and what it raises for a sample it cannot take is up to its author.
    except Exception as error:
        if len(turns) == 1:
            raise DataError(f"{turns[0].where}: {type(processor).__name__} refuses it: {error}") from error
        for turn in turns:
            _encode(processor, [turn])
        places = ", ".join(turn.where for turn in turns)
        raise DataError(f"{type(processor).__name__} takes these one by one only ({places}): {error}") from error


def _processed(processor: Any, turns: Sequence[Turn]) -> Mapping[str, Tensor]:
    texts = [turn.prompt if turn.rest else question(processor, turn.prompt, len(turn.images)) for turn in turns]
    begin = processor.tokenizer.bos_token
    encoded: Mapping[str, Tensor] = processor(
        text=texts,
        images=[list(turn.images) for turn in turns],
        padding=len(turns) > 1,
        padding_side="right",
        # Chat templates write the begin token themselves.
        add_special_tokens=begin is None or not texts[0].startswith(begin),
        return_tensors="pt",
    )
    return encoded


def _answers(tokenizer: Any, turns: Sequence[Turn]) -> list[tuple[Tensor, Tensor]]:
    """Ids and labels of what follows each prompt."""
    end = end_of(tokenizer)
    # A template ends its turns itself.
    plain = [encode([Piece(turn.answer, True)], tokenizer)[0] + end for turn in turns]
    spoken = [encode(turn.rest, tokenizer) if turn.rest else (ids, ids) for turn, ids in zip(turns, plain, strict=True)]
    return [(torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)) for ids, labels in spoken]


def _prompts(encoded: Mapping[str, Tensor], end: int | None) -> Tensor:
    """Where the prompts are, bool [rows, tokens]: no padding, and no end token, which some tokenizers add."""
    kept = encoded["attention_mask"].bool()
    last = kept & (kept.cumsum(1) == kept.sum(1, keepdim=True))
    return kept if end is None else kept & ~(last & (encoded["input_ids"] == end))


def _by_token(value: Any, kept: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[:2] == kept.shape


def _extended(name: str, value: Tensor, kept: Tensor, answers: Sequence[Tensor], fill: int) -> Tensor:
    """The prompts' values with those of the answers behind them, padded on the right."""
    prompts = [row[here] for row, here in zip(value, kept, strict=True)]
    rows = [torch.cat([prompt, _tail(name, prompt, answer)]) for prompt, answer in zip(prompts, answers, strict=True)]
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _tail(name: str, prompt: Tensor, answer: Tensor) -> Tensor:
    """What a value by token is over the answer: a kind of token is 0 for text, a mask goes on as it ended."""
    if name == "input_ids":
        return answer
    if name == "attention_mask" or prompt.dim() > 1:
        return prompt[-1:].expand(len(answer), *prompt.shape[1:])
    return prompt.new_zeros(len(answer))
