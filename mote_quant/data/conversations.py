"""Conversations about images: where the images stand in them, and what the processor's chat template makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mote_quant.data import chat
from mote_quant.data.chat import Message, Piece
from mote_quant.errors import DataError

_PLACES = ("image", "path", "url", "bytes")
"""Where a part of a message may name its image."""


def images_within(row: Mapping[str, Any]) -> bool:
    """Whether the conversation of a row has images in it, named there or in a column."""
    return any(part.get("type") == "image" for part in _parts(row))


def named_within(row: Mapping[str, Any]) -> list[Any]:
    """The images that the conversation of a row names itself, in order."""
    pictures = (part for part in _parts(row) if part.get("type") == "image")
    found = ([part[place] for place in _PLACES if part.get(place) is not None] for part in pictures)
    return [values[0] for values in found if values]


def conversation(row: Mapping[str, Any], column: str, where: str, images: int, processor: Any) -> list[Piece]:
    """The conversation of a row with so many images as the processor's template writes it.

    The first piece holds all images: they belong before the first answer. Raises DataError.
    """
    chat.check_template(processor, where)
    messages = [_bare(message) for message in chat.messages_of(row, column, where)]
    answer = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    if _count(messages[answer:]):
        raise DataError(f"{where}: an image stands after the first answer; images belong before it")
    places = _count(messages)
    if not places:
        messages = _shown_first(messages, images, where)
    elif places != images:
        raise DataError(f"{where}: there is room for {places} image(s) in its turns, it has {images}")
    return chat.pieces_of(chat.renders(processor), messages, where)


def _parts(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = row.get(chat.column_in(row) or "")
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    return [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]


def _bare(message: Message) -> Message:
    """With the images' places alone: a template that was given an image would look for it."""
    parts = [{"type": "image"} if part.get("type") == "image" else part for part in chat.parts_of(message)]
    return {**message, "content": parts}


def _count(messages: Sequence[Message]) -> int:
    return sum(part.get("type") == "image" for message in messages for part in message["content"])


def _shown_first(messages: Sequence[Message], images: int, where: str) -> list[Message]:
    """The images in front of what the user says first."""
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise DataError(f"{where}: nobody asks about the image; give the conversation a turn of the user")
    shown = {**messages[first], "content": [{"type": "image"}] * images + messages[first]["content"]}
    return [*messages[:first], shown, *messages[first + 1 :]]
