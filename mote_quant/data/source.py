"""What a data source is: three splits of samples and the function that makes model inputs of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mote_quant.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Sample = dict[str, Any]
Collate = Callable[[Sequence[Sample]], "dict[str, Tensor]"]

IGNORED = -100
"""The label of a position that is not learned and not measured."""
_HELD_OUT = 0.05


@dataclass(frozen=True)
class Source:
    """Samples to learn from and to be measured on.

    `kind` ("text" or "vqa") chooses the metrics; `collate` gives model inputs with `labels` (-100 = ignored) and is
    deterministic; `fingerprint` is a sha256 over content and options.
    """

    name: str
    fingerprint: str
    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    collate: Collate
    kind: str


def split(samples: list[Sample]) -> dict[str, list[Sample]]:
    """Train, validation and test by position; a handful of samples is all train."""
    held = int(len(samples) * _HELD_OUT)
    cut = len(samples) - 2 * held
    return {"train": samples[:cut], "validation": samples[cut : cut + held], "test": samples[cut + held :]}


def whole(source: Source) -> Source:
    """`source` with all of its samples, in their order, as the test split."""
    return replace(source, test=[*source.train, *source.validation, *source.test])


def within(source: Source, context: int | None = None, vocabulary: int | None = None) -> Source:
    """`source` with batches that are refused (DataError) beyond `context` tokens, or `vocabulary` different ones."""

    def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
        batch = source.collate(samples)
        length, largest = batch["input_ids"].shape[1], int(batch["input_ids"].max())
        if context is not None and length > context:
            raise DataError(
                f"{source.name}: a sample has {length} tokens, this model takes {context}; "
                "set max_length, or shorten it"
            )
        if vocabulary is not None and largest >= vocabulary:
            raise DataError(
                f"{source.name}: its tokens go up to number {largest}, this model has {vocabulary} (0 to "
                f"{vocabulary - 1}): the tokenizer is not that of the model"
            )
        return batch

    return replace(source, collate=collate)


def none_held_out(name: str) -> DataError:
    """The error for data without a validation split where one is looked at."""
    return DataError(
        f"{name} has no validation samples (too few samples for a split of its own): "
        "leave train.validation and train.search out, or give more data"
    )


def too_few(each: int, found: str) -> str:
    """What is to be said of data with fewer samples (`found`: who has how many) than a step takes."""
    return f"a step takes {each} samples, {found}: a step can see one of them twice"


def fingerprint_of(*parts: Any) -> str:
    """The sha256 (hex) of JSON-able values and raw bytes, in order."""
    digest = hashlib.sha256()
    for part in _flatten(parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _flatten(parts: Iterable[Any]) -> Iterable[bytes]:
    for part in parts:
        yield part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
