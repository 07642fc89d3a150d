"""Small charts as SVG text, for pages that need no network: lines over steps, and a map of shades."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

Line = Sequence[tuple[float, float]]
"""Points (x, y), x rising."""

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 20, 30, 24
_NAMED = 6
"""So many lines have a colour and a name each; of more only the first and the last are named, shaded in between."""
_COLOURS = ("#1f6fb2", "#d1652c", "#2c8a57", "#8a4fb0", "#b08b1c", "#5a6675")
_TICKS = 4


def line_chart(title: str, lines: Mapping[str, Line]) -> str:
    """One chart of named lines over one pair of axes; empty where no line has two finite points."""
    shown = {name: points for name, line in lines.items() if len(points := _finite(line)) > 1}
    if not shown:
        return ""
    every = [point for line in shown.values() for point in line]
    x, y = _Axis.over([p[0] for p in every], _LEFT, WIDTH - _RIGHT), _y_axis([p[1] for p in every])
    colours = _colours(len(shown))
    parts = [*_grid(x, y), *(_path(line, x, y, colour) for line, colour in zip(shown.values(), colours, strict=True))]
    return _framed(title, [*parts, *_legend(list(shown), colours)], HEIGHT)


def shade_map(title: str, rows: Mapping[str, Sequence[float]], usual: float) -> str:
    """A row of cells for each name, darker for more; `usual` is where a cell has half of the shade."""
    if not rows:
        return ""
    widest = max(len(row) for row in rows.values())
    room = WIDTH - 2 * _LEFT - _RIGHT
    cell_width, cell_height = room / widest, 14 if len(rows) <= _NAMED * 2 else 6
    parts = []
    for number, (name, row) in enumerate(rows.items()):
        top = _TOP + number * cell_height
        if cell_height > 10 or number % 6 == 0:
            parts.append(_text(2 * _LEFT - 6, top + cell_height - 3, name, "end"))
        for place, value in enumerate(row):
            box = f'x="{2 * _LEFT + place * cell_width:.1f}" y="{top}" width="{cell_width:.1f}" height="{cell_height}"'
            shade = min(1.0, value / (2 * usual)) if usual else 0.0
            told = f"<title>{html.escape(name)}, expert {place}: {value:.3g}</title>"
            parts.append(f'<rect {box} fill="#1f6fb2" fill-opacity="{shade:.2f}" stroke="#e3e8ee">{told}</rect>')
    return _framed(title, parts, _TOP + len(rows) * cell_height + 8)


class _Axis:
    """From figures to places in the picture, with round figures for ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self._start, self._end = low, high, start, end

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        return cls(low, high if high > low else low + 1, start, end)

    def place(self, value: float) -> float:
        """Where `value` is drawn."""
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round figures within, about `_TICKS` of them."""
        step = _round_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _y_axis(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    # From 0 where that costs little room; a flat line lies in the middle.
    low = 0.0 if 0 < low < 0.4 * high else low
    room = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return _Axis(low if low == 0 else low - room, high + room, HEIGHT - _BOTTOM, _TOP)


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
    for tick in y.ticks():
        place = y.place(tick)
        yield f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e3e8ee"/>'
        yield _text(_LEFT - 6, place + 3.5, _figure(tick), "end")
    for tick in x.ticks():
        yield _text(x.place(tick), HEIGHT - 8, _figure(tick), "middle")


def _path(line: Line, x: _Axis, y: _Axis, colour: str) -> str:
    points = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in line)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'


def _legend(names: list[str], colours: list[str]) -> Iterable[str]:
    if len(names) < 2:
        return
    pairs = list(zip(names, colours, strict=True))
    right = float(WIDTH - _RIGHT)
    for name, colour in reversed(pairs if len(names) <= _NAMED else [pairs[0], pairs[-1]]):
        yield _text(right, 14, name, "end", colour)
        right -= 6.2 * len(name) + 14


def _figure(value: float) -> str:
    if abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 10_000 else f"{value / 1000:,.0f}k"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#5a6675") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _framed(title: str, parts: Iterable[str], height: float) -> str:
    head = f'<text x="0" y="14" font-weight="600" fill="#1c2430">{html.escape(title)}</text>'
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    font = 'font-family="system-ui, sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">{head}{"".join(parts)}</svg>'
