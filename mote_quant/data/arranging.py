"""How the samples of a window become the rows of batches: one by one, packed, or sorted by length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mote_quant.data.mixing import untagged
from mote_quant.data.order import shuffled
from mote_quant.data.packing import fit
from mote_quant.data.source import Sample
from mote_quant.errors import DataError

Row = list[Sample]
Count = Counter[str]

PACKED_AT_ONCE = 512
"""Samples that are packed together: the more, the fuller the rows."""
BATCHES_AT_ONCE = 64
"""Batches whose samples are sorted together: the more, the more alike their lengths."""


@dataclass(frozen=True)
class Arrangement:
    """Takes `samples` at a time; `rows(samples, window)` are the rows of that window, and what was counted in it.

    `told` makes of all counts what the report says.
    """

    samples: int
    rows: Callable[[list[Sample], int], tuple[list[Row], Count]]
    told: Callable[[Count], dict[str, Any]]


def one_by_one(batch_size: int) -> Arrangement:
    """Every sample is a row."""

    def rows(samples: list[Sample], window: int) -> tuple[list[Row], Count]:
        return [[sample] for sample in samples], Counter()

    return Arrangement(batch_size, rows, lambda count: {})


def packed(room: int, *seed: Any) -> Arrangement:
    """Rows of at most `room` tokens, in an order that follows from the seed. DataError for a sample that is longer."""

    def rows(samples: list[Sample], window: int) -> tuple[list[Row], Count]:
        lengths = [tokens_in(sample) for sample in samples]
        if max(lengths) > room:
            raise DataError(f"train.pack: a sample has {max(lengths)} tokens, max_length is {room}; raise it")
        made = [[samples[index] for index in row] for row in fit(lengths, room)]
        count = Counter(samples=len(samples), tokens=sum(lengths), rows=len(made))
        return [made[place] for place in shuffled(len(made), *seed, "pack", window)], count

    def told(count: Count) -> dict[str, Any]:
        filled, each = count["tokens"] / (count["rows"] * room), count["samples"] / count["rows"]
        return {"packed": {"fill": round(filled, 4), "samples_a_row": round(each, 2)}}

    return Arrangement(PACKED_AT_ONCE, rows, told)


def bucketed(batch_size: int, *seed: Any) -> Arrangement:
    """Batches of samples of like lengths, in an order that follows from the seed."""

    def rows(samples: list[Sample], window: int) -> tuple[list[Row], Count]:
        lengths = [tokens_in(sample) for sample in samples]
        order = sorted(range(len(samples)), key=lambda index: (-lengths[index], index))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        chosen = [batches[place] for place in shuffled(len(batches), *seed, "bucket", window)]
        room, before = _padded([lengths[index] for index in order], batch_size), _padded(lengths, batch_size)
        count = Counter(tokens=sum(lengths), room=room, room_unsorted=before)
        return [[samples[index]] for batch in chosen for index in batch], count

    def told(count: Count) -> dict[str, Any]:
        padding = {name: round(1 - count["tokens"] / count[name], 4) for name in ("room", "room_unsorted")}
        return {"bucketed": {"padding": padding["room"], "padding_unsorted": padding["room_unsorted"]}}

    return Arrangement(BATCHES_AT_ONCE * batch_size, rows, told)


def _padded(lengths: Sequence[int], batch_size: int) -> int:
    """Tokens with padding of batches of these lengths, in this order."""
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches)


def tokens_in(sample: Sample) -> int:
    """How long a sample is. DataError where only collating it would tell."""
    ids = untagged(sample).get("input_ids")
    if ids is None:
        raise DataError("how many tokens these samples have shows only with their images; leave pack and bucket out")
    return ids.numel() if isinstance(ids, Tensor) else len(ids)
