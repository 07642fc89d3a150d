"""Several sources as one: each sample comes from a source with the probability of its weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mote_quant.data.cursor import Cursor
from mote_quant.data.order import generator_for
from mote_quant.data.source import IGNORED, Sample, Source, fingerprint_of
from mote_quant.errors import DataError

_AT_ONCE = 1024
"""So many choices of a source are drawn together."""


def tagged(sample: Sample, source: int) -> Sample:
    """A sample that knows the number of its source."""
    return {"source": source, "sample": sample}


def untagged(sample: Sample) -> Sample:
    """The sample itself."""
    found: Sample = sample.get("sample", sample)
    return found


class Mixed:
    """A cursor that draws from `cursors`, each as often as its weight says."""

    def __init__(self, cursors: Sequence[Cursor], weights: Sequence[float], *seed: Any) -> None:
        self._cursors, self._weights, self._seed = cursors, torch.tensor(weights, dtype=torch.float64), seed
        self._drawn = 0
        self._stretch, self._choices = -1, list[int]()

    @property
    def bad(self) -> int:
        """Malformed rows of all of them that were left out."""
        return sum(cursor.bad for cursor in self._cursors)

    def take(self) -> Sample:
        """The next sample of the source whose turn it is, tagged with its number."""
        stretch, place = divmod(self._drawn, _AT_ONCE)
        if stretch != self._stretch:
            generator = generator_for(*self._seed, "mix", stretch)
            drawn = torch.multinomial(self._weights, _AT_ONCE, replacement=True, generator=generator)
            self._stretch, self._choices = stretch, drawn.tolist()
        self._drawn += 1
        source = self._choices[place]
        return tagged(self._cursors[source].take(), source)

    def state(self) -> dict[str, Any]:
        """That of every source, and how many were drawn."""
        return {"drawn": self._drawn, "sources": [cursor.state() for cursor in self._cursors]}

    def load(self, state: dict[str, Any]) -> None:
        """Go there."""
        self._drawn = state["drawn"]
        for cursor, saved in zip(self._cursors, state["sources"], strict=True):
            cursor.load(saved)


def distinct(sources: Mapping[str, Source], weights: Mapping[str, float]) -> list[tuple[Source, float]]:
    """Sources and their weights; where several names are the same data their weights add up.

    DataError for sources of different kinds.
    """
    found: dict[str, tuple[Source, float]] = {}
    for name, source in sources.items():
        before = found.get(source.fingerprint, (source, 0.0))
        found[source.fingerprint] = (before[0], before[1] + weights[name])
    kinds = {source.kind for source, _ in found.values()}
    if len(kinds) > 1:
        told = ", ".join(f"{source.name} ({source.kind})" for source, _ in found.values())
        raise DataError(f"train.data mixes sources of different kinds: {told}; give each kind a train step of its own")
    return list(found.values())


def joined(parts: Sequence[tuple[Source, float]]) -> Source:
    """One source for all: their validation and test samples one after the other, tagged."""
    if len(parts) == 1:
        return parts[0][0]
    sources = [source for source, _ in parts]

    def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
        numbers = sorted({sample["source"] for sample in samples})
        chosen = {n: [sample["sample"] for sample in samples if sample["source"] == n] for n in numbers}
        return merged([sources[n].collate(chosen[n]) for n in numbers], [sources[n].name for n in numbers])

    def every(split: str) -> list[Sample]:
        return [tagged(sample, n) for n, source in enumerate(sources) for sample in getattr(source, split)]

    name = " + ".join(source.name for source in sources)
    fingerprint = fingerprint_of("mix", [[source.fingerprint, weight] for source, weight in parts])
    return Source(name, fingerprint, every("train"), every("validation"), every("test"), collate, sources[0].kind)


def merged(batches: Sequence[dict[str, Tensor]], names: Iterable[str]) -> dict[str, Tensor]:
    """Batches below each other, padded on the right. DataError for what does not fit together."""
    if len(batches) == 1:
        return batches[0]
    width = max(batch["input_ids"].shape[1] for batch in batches)
    wide = [{key: _wider(key, value, batch, width) for key, value in batch.items()} for batch in batches]
    shapes = [{key: value.shape[1:] for key, value in batch.items()} for batch in wide]
    if any(shape != shapes[0] for shape in shapes):
        raise DataError(f"{' and '.join(names)} cannot share a batch: their shapes differ; train on each alone")
    return {key: torch.cat([batch[key] for batch in wide]) for key in wide[0]}


def _wider(key: str, value: Tensor, batch: Mapping[str, Tensor], width: int) -> Tensor:
    """A value by token [rows, tokens, ...] with padding behind its tokens; any other as it is."""
    rows, tokens = batch["input_ids"].shape
    if value.shape[:2] != (rows, tokens):
        return value
    more = value.new_full((rows, width - tokens, *value.shape[2:]), IGNORED if key == "labels" else 0)
    return torch.cat([value, more], dim=1)
