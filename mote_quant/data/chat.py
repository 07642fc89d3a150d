"""Conversations as training samples, by the tokenizer's own chat template; only what the assistant says is learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mote_quant.data.source import IGNORED, Sample
from mote_quant.errors import DataError

COLUMNS = ("messages", "conversations")
"""A list of turns: `{role, content}`, or ShareGPT's `{from, value}`."""
_ASSISTANT = "assistant"
_ROLES = {"human": "user", "gpt": _ASSISTANT, "chatgpt": _ASSISTANT, "bot": _ASSISTANT, "model": _ASSISTANT}
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NO_TEMPLATE = (
    "needs a chat template, and the tokenizer has none: take that of the instruction-tuned model, put a "
    "chat_template.jinja beside the model, or write the rows as prompt and completion"
)
_CHANGES = (
    "the chat template writes earlier turns differently when others follow, so that what the assistant said cannot be "
    "found; mark it in the template with {% generation %}, or make a row of each answer"
)

Message = dict[str, Any]
Render = Callable[[Sequence[Message], bool], str]


@dataclass(frozen=True)
class Piece:
    """A part of a conversation as the template writes it; `learned` is what the assistant says."""

    text: str
    learned: bool


def column_in(columns: Iterable[str]) -> str | None:
    """The column that holds conversations, or None."""
    names = set(columns)
    return next((column for column in COLUMNS if column in names), None)


def messages_of(row: Mapping[str, Any], column: str, where: str) -> list[Message]:
    """The turns of a row as `{role, content}`. DataError for what are none, or where the assistant says nothing."""
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: {column} is {turns!r}, a list of turns is needed")
    messages = [_message(turn, f"{where}, turn {number}") for number, turn in enumerate(turns, 1)]
    if not any(message["role"] == _ASSISTANT for message in messages):
        raise DataError(f"{where}: the assistant says nothing, so there is nothing to learn; leave the row out")
    return messages


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {turn!r}; needed is {{role, content}}, or {{from, value}}")
    # Tables give every turn the keys of all others, as None.
    given = {key: value for key, value in turn.items() if value is not None}
    role, content = given.pop("role", given.pop("from", None)), given.pop("content", given.pop("value", None))
    if not isinstance(role, str):
        raise DataError(f"{where} does not say who speaks; needed is {{role, content}}, or {{from, value}}")
    if not isinstance(content, str | list) and "tool_calls" not in given:
        raise DataError(f"{where}: content is {content!r}, text is needed")
    return {**given, "role": _ROLES.get(role, role), "content": content}


def parts_of(message: Message) -> list[dict[str, Any]]:
    """The content of a message as `{type: text, text}` and `{type: image, ...}`."""
    content = message["content"]
    if isinstance(content, list):
        return [{key: value for key, value in part.items() if value is not None} for part in content]
    return [{"type": "text", "text": content or ""}]


def words_only(message: Message, where: str) -> Message:
    """The message with its content as one text; DataError for images, which a tokenizer cannot take."""
    if not isinstance(message["content"], list):
        return message
    parts = parts_of(message)
    for part in parts:
        if part.get("type", "text") != "text":
            raise DataError(f"{where} has an {part['type']} in it, which needs a processor of a vision-language model")
    return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}


def check_template(speaker: Any, name: str) -> None:
    """DataError unless `speaker`, a tokenizer or a processor, has a chat template."""
    if getattr(speaker, "chat_template", None) is None:
        raise DataError(f"{name} {_NO_TEMPLATE}")


def pieces_of(render: Render, messages: Sequence[Message], where: str) -> list[Piece]:
    """What is asked and what is answered, in turn, up to the last answer: `render(messages, ask)` writes them.

    Each beginning of the conversation must be what the whole of it begins with. DataError where it is not.
    """
    pieces: list[Piece] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] == _ASSISTANT:
            asked = _rendered(render, messages[:index], True, where)
            answered = _rendered(render, messages[: index + 1], False, where)
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise DataError(f"{where}: {_CHANGES}")
            pieces += [Piece(asked[len(done) :], False), Piece(answered[len(asked) :], True)]
            done = answered
    return pieces


def renders(speaker: Any) -> Render:
    """What the template of a tokenizer or a processor makes of turns."""

    def render(turns: Sequence[Message], ask: bool) -> str:
        text: str = speaker.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask)
        return text

    return render


def _rendered(render: Render, messages: Sequence[Message], ask: bool, where: str) -> str:
    if not messages:
        return ""
    # A template is a program of the model's author, and raises what it likes for what it does not expect.
    try:
        return render(messages, ask)
    except Exception as error:
        raise DataError(f"{where}: the chat template refuses it: {error}") from error


def chat_sample(messages: Sequence[Message], tokenizer: Any, where: str) -> Sample:
    """A sample that learns what the assistant says, to the end of its turns. Raises DataError."""
    messages = [words_only(message, where) for message in messages]
    if _MARKS.search(tokenizer.get_chat_template()):
        return _marked(messages, tokenizer, where)
    pieces = pieces_of(renders(tokenizer), messages, where)
    ids, labels = encode(pieces, tokenizer)
    return {"input_ids": ids, "labels": labels, "bytes": learned_bytes(pieces)}


def _marked(messages: Sequence[Message], tokenizer: Any, where: str) -> Sample:
    """By the marks in the template."""
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    try:
        encoded = tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:
        raise DataError(f"{where}: the chat template refuses it: {error}") from error
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    if not any(mask):
        raise DataError(f"{where}: the {{% generation %}} marks of the chat template leave out what the assistant says")
    labels = [token if said else IGNORED for token, said in zip(ids, mask, strict=True)]
    said = tokenizer.decode([token for token in labels if token != IGNORED], skip_special_tokens=True)
    return {"input_ids": ids, "labels": labels, "bytes": len(said.encode())}


def encode(pieces: Sequence[Piece], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids and labels of pieces; tokenized as one text where the tokenizer says where its tokens begin."""
    if not tokenizer.is_fast:
        parts = [_alone(piece, tokenizer) for piece in pieces]
        return [token for ids, _ in parts for token in ids], [label for _, labels in parts for label in labels]
    text, spans = "", []
    for piece in pieces:
        if piece.learned:
            spans.append((len(text), len(text) + len(piece.text)))
        text += piece.text
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    learned = _inside(starts, spans)
    return ids, [token if said else IGNORED for token, said in zip(ids, learned, strict=True)]


def _inside(starts: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Which tokens begin in one of the spans; both are in order."""
    found, left = [], list(reversed(spans))
    for start in starts:
        while left and left[-1][1] <= start:
            left.pop()
        found.append(bool(left) and left[-1][0] <= start)
    return found


def _alone(piece: Piece, tokenizer: Any) -> tuple[list[int], list[int]]:
    ids = tokenizer(piece.text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids, list(ids) if piece.learned else [IGNORED] * len(ids)


def learned_bytes(pieces: Sequence[Piece]) -> int:
    """UTF-8 bytes of what is learned."""
    return sum(len(piece.text.encode()) for piece in pieces if piece.learned)
