"""Charts of a report: whole SVG, the points where they belong, and nothing where there is nothing to see."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from mote_quant.report.charts import HEIGHT, WIDTH, line_chart, shade_map
from mote_quant.report.training import callouts, charts

SVG = "{http://www.w3.org/2000/svg}"


def points_of(line: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]


def drawn(chart: str) -> list[list[tuple[float, float]]]:
    return [points_of(line) for line in ET.fromstring(chart).iter(f"{SVG}polyline")]


def words(chart: str) -> list[str]:
    return [text.text for text in ET.fromstring(chart).iter(f"{SVG}text")]


def test_points_lie_in_order_and_inside():
    [falling, rising] = drawn(
        line_chart("two <lines>", {"a": [(1, 5.0), (2, 3.0), (3, 1.0)], "b": [(1, 0.0), (3, 5.0)]})
    )
    assert [x for x, _ in falling] == sorted(x for x, _ in falling)
    assert falling[0][1] < falling[1][1] < falling[2][1], "less is further down"
    assert falling[0][1] == rising[1][1]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in falling + rising)
    assert falling[1][1] == pytest.approx((falling[0][1] + falling[2][1]) / 2, abs=0.11)


@pytest.mark.parametrize("values", [[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0], [1e-9, 2e-9], [1e7, 3e7], [5.0, 5.0000001]])
def test_any_range_has_ticks_and_a_line(values):
    chart = line_chart("x", {"a": list(enumerate(values))})
    [line] = drawn(chart)
    assert all(math.isfinite(y) and 0 <= y <= HEIGHT for _, y in line)
    assert len(words(chart)) > 3


def test_what_is_not_finite_is_left_out_and_nothing_makes_no_chart():
    [line] = drawn(line_chart("x", {"a": [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)]}))
    assert len(line) == 2
    assert line_chart("x", {"a": [(1, 1.0)], "b": []}) == ""
    assert shade_map("x", {}, 0.5) == ""


def test_of_many_lines_the_first_and_last_are_named():
    few, many = (line_chart("x", {f"layer {n}": [(0, n), (1, n)] for n in range(count)}) for count in (3, 30))
    assert [word for word in words(few) if "layer" in word] == ["layer 2", "layer 1", "layer 0"]
    assert [word for word in words(many) if "layer" in word] == ["layer 29", "layer 0"]
    assert len(drawn(many)) == 30


def test_shades_follow_the_values():
    cells = list(ET.fromstring(shade_map("x", {"layer 0": [0.0, 0.25, 0.75]}, 0.25)).iter(f"{SVG}rect"))
    assert [float(cell.attrib["fill-opacity"]) for cell in cells] == [0.0, 0.5, 1.0]


POINTS = [
    {"step": step, "routing": {"m.layers.0": {"load": [0.5, 0.5], "balance": 1.0, "entropy": 0.7}}}
    for step in (1, 2, 3)
]


def test_a_note_has_charts_of_what_it_saw():
    titles = [words(chart)[0] for chart in charts({"step": "train", "figures": POINTS})]
    assert titles == [
        "balance of experts (1 is even)",
        "routing entropy (nats)",
        "load of experts at the end (a row a layer)",
    ]
    assert charts({"step": "quantize"}) == []
    curve = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "validation": 3.0},
        {"step": 3, "loss": 1, "validation": 2},
    ]
    assert "validation" in words(charts({"step": "train", "curve": curve})[0])


def test_dead_experts_are_called_out_by_layer():
    dead = [{"layer": "a", "expert": 1, "step": 5}, {"layer": "b", "expert": 0, "step": 6}]
    dead.append({"layer": "a", "expert": 3, "step": 9})
    [first, second] = callouts({"dead_experts": dead})
    assert first[0] == "a"
    assert "expert 1 (since step 5), 3 (since step 9)" in first[1]
    assert second[0] == "b"
    assert callouts({}) == []
