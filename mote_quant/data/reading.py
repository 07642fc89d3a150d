"""How a step wants its data read, beyond the length of a sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mote_quant.data.source import Source
from mote_quant.recipe.schema import Train


@dataclass(frozen=True)
class Reading:
    """`stream`: rows are read as they are needed, `shuffle_buffer` of them are shuffled at a time.

    The first `validation_rows` of a stream are held out. Up to `bad_rows` of its rows may be malformed and are left
    out. `apart`: every document is a sample of its own (cut where it is too long), not joined with the next one.
    """

    stream: bool = False
    shuffle_buffer: int = 1000
    validation_rows: int = 0
    bad_rows: int = 0
    apart: bool = False

    def described(self) -> dict[str, Any]:
        """What of it decides the samples, for a fingerprint: `bad_rows` only says when to give up."""
        return {name: value for name, value in asdict(self).items() if name != "bad_rows"}

    @property
    def all_held_out(self) -> str:
        """What is to be said of a stream that ends with the rows that are held out."""
        return (
            f"has nothing to train on behind the {self.validation_rows} rows that are held out; lower validation_rows"
        )


class Opener(Protocol):
    """`open_data(name, max_length)`, or with a `Reading` for what is not read in the usual way."""

    def __call__(self, name: str, max_length: int | None, reading: Reading = ..., /) -> Source:
        """The source of this name. Raises DataError."""
        ...


USUAL = Reading()


def reading_of(config: Train) -> Reading:
    """As a train step wants its data read."""
    if not config.stream:
        return Reading(apart=config.pack)
    return Reading(True, config.shuffle_buffer, config.validation_rows, config.bad_rows, config.pack)
