"""Small charts as SVG text, for pages that need no network: lines over steps, and a map of shades."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Line = Sequence[tuple[float, float]]
"""Points (x, y), x rising."""

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 30, 24
_NAMED = 6
"""So many lines have a colour and a name each; of more only the first and the last are named, shaded in between."""
_COLOURS = ("#1f6fb2", "#d1652c", "#2c8a57", "#8a4fb0", "#b08b1c", "#5a6675")
_TICKS = 4
_DIGITS = 10
_LEGIBLE = 32
"""So many rows of a map are high enough for text."""


def line_chart(title: str, lines: Mapping[str, Line]) -> str:
    """One chart of named lines over steps; empty where no line has two finite points.

    A line that is alone is named where its name is not the title.
    """
    shown = {name: points for name, line in lines.items() if len(points := _finite(line)) > 1}
    if not shown:
        return ""
    every = [point for line in shown.values() for point in line]
    x, y = _x_axis([p[0] for p in every]), _y_axis([p[1] for p in every])
    colours = _colours(len(shown))
    parts = [*_grid(x, y), _text(_LEFT - 14, HEIGHT - 8, "step", "end")]
    parts += [_path(line, x, y, colour) for line, colour in zip(shown.values(), colours, strict=True)]
    named = [] if len(shown) == 1 and title.startswith(next(iter(shown))) else list(shown)
    return _framed(title, [*parts, *_legend(named, colours)], HEIGHT)


def share_map(title: str, rows: Mapping[str, Sequence[float]], column: str) -> str:
    """A row of cells for each name, one for each `column`, that show its share of the row in percent, darker for more.

    An even share has half of the shade.
    """
    if not rows:
        return ""
    widest = max(len(row) for row in rows.values())
    cell = _Cell((WIDTH - 2 * _LEFT - _RIGHT) / max(widest, 1), 16 if len(rows) <= _LEGIBLE else 6)
    parts = [_text(2 * _LEFT - 6, _TOP + 8, column, "end")]
    every = math.ceil(20 / cell.width)
    parts += [_text(cell.middle(place), _TOP + 8, str(place), "middle") for place in range(0, widest, every)]
    for number, (name, row) in enumerate(rows.items()):
        if cell.height > 10 or number % 6 == 0:
            parts.append(_text(2 * _LEFT - 6, cell.top(number) + cell.height - 4, name, "end"))
        parts += [
            cell.drawn(number, place, value, len(row), f"{name}, {column} {place}") for place, value in enumerate(row)
        ]
    return _framed(title, parts, cell.top(len(rows)) + 8)


@dataclass(frozen=True)
class _Cell:
    """Of a map: how large its cells are."""

    width: float
    height: int

    def top(self, row: int) -> int:
        """The upper edge of a row, below the names of the columns."""
        return _TOP + 14 + row * self.height

    def middle(self, place: int) -> float:
        """The middle of a column."""
        return 2 * _LEFT + (place + 0.5) * self.width

    def drawn(self, row: int, place: int, share: float, of: int, name: str) -> str:
        """A cell with a `share` of one, where 1 / `of` is even; its figure is written where there is room."""
        shade = min(1.0, share * of / 2)
        left, top = 2 * _LEFT + place * self.width, self.top(row)
        box = f'x="{left:.1f}" y="{top}" width="{self.width:.1f}" height="{self.height}"'
        told = f"<title>{html.escape(name)}: {100 * share:.3g} %</title>"
        rectangle = f'<rect {box} fill="#1f6fb2" fill-opacity="{shade:.2f}" stroke="#e3e8ee">{told}</rect>'
        if self.height < 10 or self.width < 24:
            return rectangle
        colour = "#ffffff" if shade > 0.7 else "#1c2430"
        return rectangle + _text(self.middle(place), top + self.height - 4, f"{100 * share:.0f}", "middle", colour)


class _Axis:
    """From figures to places in the picture, with a tick at every multiple of `step`."""

    def __init__(self, low: float, high: float, step: float, start: float, end: float) -> None:
        self.low, self.high, self._step, self._start, self._end = low, high, step, start, end

    def place(self, value: float) -> float:
        """Where `value` is drawn."""
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round figures within, about `_TICKS` of them."""
        first = math.ceil(self.low / self._step - 1e-9)
        return [number * self._step for number in range(first, math.floor(self.high / self._step + 1e-9) + 1)]


def _x_axis(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    # Steps of a training are whole.
    step = max(1.0, _round_step((high - low) / _TICKS))
    return _Axis(low, high, math.ceil(step), _LEFT, WIDTH - _RIGHT)


def _y_axis(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    # From 0 where that costs little room; a flat line lies in the middle.
    low = 0.0 if 0 < low < 0.4 * high else low
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    bottom = low if low == 0 else low - room
    end = high if high > low else high + room
    step = _round_step((end - bottom) / _TICKS)
    # The topmost tick is above all of the data, so that its largest figure can be read off.
    top = max(end, math.ceil(end / step - 1e-9) * step)
    return _Axis(bottom, top, step, HEIGHT - _BOTTOM, _TOP)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _finite(line: Line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line if math.isfinite(y)]


def _colours(count: int) -> list[str]:
    if count <= _NAMED:
        return list(_COLOURS[:count])
    # From light to dark, as layers lie.
    return [f"hsl(208, 60%, {82 - 56 * number / (count - 1):.0f}%)" for number in range(count)]


def _grid(x: _Axis, y: _Axis) -> Iterable[str]:
    for tick, figure in zip(y.ticks(), _figures(y.ticks()), strict=True):
        place = y.place(tick)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e3e8ee"/>'
        yield _text(_LEFT - 6, place + 3.5, figure, "end")
    for tick, figure in zip(x.ticks(), _figures(x.ticks()), strict=True):
        yield _text(x.place(tick), HEIGHT - 8, figure, "middle")


def _path(line: Line, x: _Axis, y: _Axis, colour: str) -> str:
    points = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in line)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'


def _legend(names: list[str], colours: list[str]) -> Iterable[str]:
    pairs = list(zip(names, colours, strict=False))
    right = float(WIDTH - _RIGHT)
    for name, colour in reversed(pairs if len(names) <= _NAMED else [pairs[0], pairs[-1]]):
        yield _text(right, 14, name, "end", colour)
        right -= 6.2 * len(name) + 14


def _figures(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, all with as many digits as are needed to tell what each is."""
    most = max(map(abs, ticks), default=0.0)
    scale, unit = (1000.0, "k") if most >= 10_000 else (1.0, "")
    kind = "f" if most >= 1e-3 else "g"
    gap = min((b - a for a, b in pairwise(ticks)), default=most)
    for digits in range(_DIGITS):
        texts = [f"{tick / scale:.{digits}{kind}}" for tick in ticks]
        if all(abs(float(text) * scale - tick) <= 0.01 * gap for text, tick in zip(texts, ticks, strict=True)):
            break
    return [f"{tick / scale:,.{digits}{kind}}{unit}" for tick in ticks]


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#5a6675") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _framed(title: str, parts: Iterable[str], height: float) -> str:
    head = f'<text x="0" y="14" font-weight="600" fill="#1c2430">{html.escape(title)}</text>'
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    font = 'font-family="system-ui, sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">{head}{"".join(parts)}</svg>'
