"""The `digits-vqa` source: scenes with questions, split so that no test image is ever seen in training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mote_quant.data.answers import Turn, collate_answers
from mote_quant.data.digits_vqa.questions import questions
from mote_quant.data.digits_vqa.scenes import SPLITS, Digits, choose_images, load_digits, render
from mote_quant.data.processors import settings_of
from mote_quant.data.source import Sample, Source, fingerprint_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import ProcessorMixin

NAME = "digits-vqa"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """How many questions a split has."""

    train: int = 80_000
    validation: int = 2_000
    test: int = 4_000


def build_source(processor: ProcessorMixin | None = None, seed: int = 0, sizes: Sizes | None = None) -> Source:
    """Deterministic under `seed`, which draws scenes and questions; the image pools belong to it too."""
    sizes = sizes or Sizes()
    if processor is None:
        from mote_quant.data.digits_vqa.processor import build_processor

        processor = build_processor()
    digits = load_digits()
    splits = {split: draw_samples(digits, split, getattr(sizes, split), seed) for split in SPLITS}
    content = ([sample["image"].tobytes(), _text(sample)] for split in SPLITS for sample in splits[split])
    fingerprint = fingerprint_of(NAME, seed, *(part for parts in content for part in parts), *settings_of(processor))
    return Source(NAME, fingerprint, **splits, collate=partial(_collate, processor), kind="vqa")


def _collate(processor: ProcessorMixin, samples: Sequence[Sample]) -> dict[str, Tensor]:
    turns = [Turn(sample["question"], sample["answer"], [_grey_as_rgb(sample["image"])], NAME) for sample in samples]
    return collate_answers(processor, turns)


def _grey_as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(image[..., None], 3, axis=-1)


def _text(sample: Sample) -> list[str]:
    return [sample["kind"], sample["question"], sample["answer"]]


def draw_samples(digits: Digits, split: str, count: int, seed: int) -> list[Sample]:
    """`count` different samples: image (uint8 [HEIGHT, WIDTH]), question, answer, kind, images (digits' numbers)."""
    pool = digits.pools(seed)[split]
    rng = Random(f"{NAME} {split} {seed}")
    seen: set[tuple[str, tuple[int | None, ...]]] = set()
    samples: list[Sample] = []
    for question in questions(rng):
        if len(samples) == count:
            break
        images = choose_images(question.cells, pool, rng)
        if (question.text, images) in seen:
            continue
        seen.add((question.text, images))
        sample = {"kind": question.kind, "question": question.text, "answer": question.answer, "images": images}
        samples.append(sample | {"image": render(images, digits.images, rng)})
    return samples
