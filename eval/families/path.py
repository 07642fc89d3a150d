"""The path a family goes, column by column of the table: each check does its stretch and says how it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mote_quant.errors import MoteError

COLUMNS = ("up-cycles", "trains", "quantizes", "reloads", "generates", "exports")
"""Headings of the tables of dense families after the family's name."""

YES = "yes"
NOT_REACHED = "-"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `kind` is the table it stands in (`language`, `vision-language`, `experts`); `results` has a word for every one of
    its columns, in order: YES, NOT_REACHED, or what is different or missing, in the words of the error.
    """

    family: str
    kind: str
    results: Mapping[str, str]


Rows = Mapping[str, Callable[[Path], Row]]
"""A table: family -> what sends it down the path, with a folder for its files, and returns its row."""


@dataclass(frozen=True)
class Stretch:
    """What fills a column: `check` does it, with what the columns before left, and returns YES or what is different.

    It raises MoteError where it cannot; columns that `needs` names must have gone well before.
    """

    check: Callable[..., str]
    needs: tuple[str, ...] = ()


def walk(family: str, kind: str, stretches: Mapping[str, Stretch], state: object) -> Row:
    """Do the stretches of all columns in order, each on `state`, which they may change."""
    results: dict[str, str] = {}
    failed: set[str] = set()
    for column, stretch in stretches.items():
        if failed.intersection(stretch.needs):
            results[column] = NOT_REACHED
            failed.add(column)
            continue
        try:
            results[column] = stretch.check(state)
        except MoteError as error:
            results[column] = f"no: {error.message}"
            failed.add(column)
    return Row(family, kind, results)
