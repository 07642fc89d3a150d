"""What a row becomes: the samples in it, by the columns it has. For tables and streams alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from mote_quant.data import chat, text
from mote_quant.data.columns import described, pair_in, string
from mote_quant.data.source import Sample
from mote_quant.errors import DataError

Row = Mapping[str, Any]


class TooLongError(DataError):
    """A row with more tokens than a sample may have."""


class Reader(Protocol):
    """Makes samples of rows."""

    @property
    def kind(self) -> str:
        """As that of a Source."""
        ...

    @property
    def settings(self) -> list[Any]:
        """What decides the samples, JSON-able, for the fingerprint."""
        ...

    def samples(self, row: Row, where: str) -> list[Sample]:
        """Those that are complete with this row. DataError names the row by `where`."""
        ...

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Model inputs."""
        ...

    def state(self) -> Any:
        """What is kept from one row to the next, JSON-ready."""
        ...

    def load(self, state: Any) -> None:
        """Go on from there; None is the beginning."""
        ...


class _Words:
    """Rows of text, each by itself, no longer than `length` tokens."""

    kind = "text"

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.settings: list[Any] = [length, tokenizer.get_vocab()]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.collate = partial(text.collate_answers_text, pad=pad)

    def state(self) -> Any:
        """Nothing."""
        return None

    def load(self, state: Any) -> None:
        """Nothing to do."""

    def _fitting(self, sample: Sample, where: str) -> Sample:
        tokens = len(sample["input_ids"])
        if tokens > self.length:
            raise TooLongError(f"{where}: {tokens} tokens, the limit is {self.length}; raise max_length or shorten it")
        return sample


class Answers(_Words):
    """A prompt and its completion, in the columns `pair`."""

    def __init__(self, tokenizer: Any, length: int, pair: tuple[str, str]) -> None:
        super().__init__(tokenizer, length)
        self._pair = pair

    def samples(self, row: Row, where: str) -> list[Sample]:
        """One."""
        prompt, completion = (string(row, column, where) for column in self._pair)
        return [self._fitting(text.answer_sample(prompt, completion, self.tokenizer), where)]


class Chats(_Words):
    """A conversation in `column`."""

    def __init__(self, tokenizer: Any, length: int, column: str, name: str) -> None:
        chat.check_template(tokenizer, name)
        super().__init__(tokenizer, length)
        self.settings.append(tokenizer.get_chat_template())
        self._column = column

    def samples(self, row: Row, where: str) -> list[Sample]:
        """One."""
        messages = chat.messages_of(row, self._column, where)
        return [self._fitting(chat.chat_sample(messages, self.tokenizer, where), where)]


class Documents(_Words):
    """Documents, each by itself; one that is too long in pieces."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        super().__init__(tokenizer, length)
        self.settings.append("apart")

    def samples(self, row: Row, where: str) -> list[Sample]:
        """Its pieces."""
        return text.pieces(string(row, "text", where), self.tokenizer, self.length)


class Blocks:
    """Documents joined and cut into blocks of equal length."""

    kind = "text"
    collate = staticmethod(text.collate_blocks)

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.length, self.settings = length, [length, tokenizer.get_vocab()]
        self._cutter = text.Cutter(tokenizer, length)

    def samples(self, row: Row, where: str) -> list[Sample]:
        """The blocks that this document fills."""
        return self._cutter.cut(string(row, "text", where))

    def state(self) -> Any:
        """What fills no block yet."""
        return list(self._cutter.rest)

    def load(self, state: Any) -> None:
        """Begin with that."""
        self._cutter.rest = ([], []) if state is None else (state[0], state[1])


def no_block(length: int) -> str:
    """What is to be said of documents that do not fill a single block."""
    return f"has fewer than {length} tokens, not one block; give more text or a smaller max_length"


def reader_of(name: str, columns: Collection[str], tokenizer: Any, max_length: int | None, apart: bool) -> Reader:
    """The reader of rows of text with these columns. DataError for columns that nothing can be made of."""
    length = text.block_length(tokenizer, max_length)
    if (column := chat.column_in(columns)) is not None:
        return Chats(tokenizer, length, column, name)
    if (pair := pair_in(columns)) is not None:
        return Answers(tokenizer, length, pair)
    if "text" not in columns:
        raise DataError(f"{name} {described(columns)}")
    return Documents(tokenizer, length) if apart else Blocks(tokenizer, length)
