"""Scenes: a 2x2 grid of cells, each empty or holding one real handwritten digit, a little off its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from mote_quant.errors import MissingExtraError

ROWS, COLUMNS = 2, 2
CELL = 10
"""Side of a cell in pixels: an 8x8 digit with one or two pixels of play."""
HEIGHT, WIDTH = ROWS * CELL, COLUMNS * CELL
SPLITS = ("train", "validation", "test")
SHARES = (0.70, 0.10, 0.20)

Cells = tuple[int | None, ...]
"""The digit in each cell, row by row; None is an empty cell."""


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: `images` uint8 [n, 8, 8] (0-255), `labels` int [n]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def pools(self, seed: int) -> dict[str, dict[int, list[int]]]:
        """Image numbers by split and digit; no image is in two splits."""
        rng = Random(f"digit pools {seed}")
        pools: dict[str, dict[int, list[int]]] = {split: {} for split in SPLITS}
        for digit in range(10):
            numbers = [int(number) for number in np.flatnonzero(self.labels == digit)]
            rng.shuffle(numbers)
            first = round(SHARES[0] * len(numbers))
            second = first + round(SHARES[1] * len(numbers))
            cuts = (numbers[:first], numbers[first:second], numbers[second:])
            for split, cut in zip(SPLITS, cuts, strict=True):
                pools[split][digit] = sorted(cut)
        return pools


def load_digits() -> Digits:
    """The 1,797 images that scikit-learn carries in its package; raises MissingExtraError without it."""
    try:
        from sklearn import datasets
    except ImportError as error:
        message = "digits-vqa draws on the images in scikit-learn: pip install 'mote-quant[demo]'"
        raise MissingExtraError(message) from error
    bunch = datasets.load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return Digits(images, bunch.target.astype(np.int64))


def choose_images(cells: Cells, pool: dict[int, list[int]], rng: Random) -> tuple[int | None, ...]:
    """One image number of the pool for every digit of the scene."""
    return tuple(None if digit is None else rng.choice(pool[digit]) for digit in cells)


def render(numbers: Sequence[int | None], images: NDArray[np.uint8], rng: Random) -> NDArray[np.uint8]:
    """The scene as grey levels, uint8 [HEIGHT, WIDTH]; every digit sits at a random place inside its cell."""
    scene = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    side = images.shape[1]
    for cell, number in enumerate(numbers):
        if number is None:
            continue
        top = cell // COLUMNS * CELL + rng.randrange(CELL - side + 1)
        left = cell % COLUMNS * CELL + rng.randrange(CELL - side + 1)
        scene[top : top + side, left : left + side] = images[number]
    return scene
