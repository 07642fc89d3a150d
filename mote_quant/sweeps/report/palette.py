"""Colours and shapes of the groups: the same in the picture and on the page."""

from __future__ import annotations

from mote_quant.sweeps.report.headline import ours_of
from mote_quant.sweeps.report.statistics import Document, contenders

# After Okabe & Ito's palette for every kind of colour vision, darkened (lightened) until each holds 3:1 against the
# page's light (dark) background.
LIGHT = ("#c8500a", "#0068a6", "#00805f", "#b0508a", "#8a6d00", "#3a86b4", "#5b5f66", "#7a4fb5")
DARK = ("#ff9152", "#5cb8ff", "#3fd0a4", "#f09acb", "#e6c229", "#9bdcff", "#b4bac4", "#c2a5ff")
SHAPES = ("circle", "square", "diamond", "triangle", "wedge", "cross", "plus")


def styles(document: Document, ours: str | None = None) -> dict[str, tuple[int, str]]:
    """Group -> index of its colour and name of its shape; ours comes first and so looks the same in every sweep."""
    groups = list(dict.fromkeys(contender.group for contender in contenders(document)))
    groups.sort(key=lambda group: group != (ours or ours_of(document)))
    return {group: _look(place) for place, group in enumerate(groups)}


def _look(place: int) -> tuple[int, str]:
    """The first colour is the first group's alone; each further round of the others shifts the shapes."""
    around, colour = divmod(place - 1, len(LIGHT) - 1) if place else (0, -1)
    return colour + 1, SHAPES[(place + around) % len(SHAPES)]
