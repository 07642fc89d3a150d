"""Charts of a report: whole SVG, the points where they belong, and nothing where there is nothing to see."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from mote_quant.report.charts import HEIGHT, WIDTH, line_chart, share_map
from mote_quant.report.training import callouts, charts, figures

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
    assert share_map("x", {}, "expert") == ""


def test_of_many_lines_the_first_and_last_are_named():
    few, many = (line_chart("x", {f"layer {n}": [(0, n), (1, n)] for n in range(count)}) for count in (3, 30))
    assert [word for word in words(few) if "layer" in word] == ["layer 2", "layer 1", "layer 0"]
    assert [word for word in words(many) if "layer" in word] == ["layer 29", "layer 0"]
    assert len(drawn(many)) == 30


def test_shades_follow_the_shares():
    chart = share_map("x", {"layer 0": [0.0, 0.25, 0.125, 0.625], "layer 1": [0.25] * 4}, "expert")
    cells = list(ET.fromstring(chart).iter(f"{SVG}rect"))
    assert [float(cell.attrib["fill-opacity"]) for cell in cells[:4]] == [0.0, 0.5, 0.25, 1.0]
    assert words(chart)[1:] == ["expert", "0", "1", "2", "3", "layer 0", "0", "25", "12", "62", "layer 1"] + ["25"] * 4
    assert cells[3].find(f"{SVG}title").text == "layer 0, expert 3: 62.5 %"


def test_many_experts_are_numbered_where_there_is_room_and_have_no_figures():
    shown = words(share_map("x", {"layer 0": [1 / 64] * 64}, "expert"))
    assert shown == ["x", "expert", *(str(number) for number in range(0, 64, 4)), "layer 0"]


TICKS = {
    (1.386, 1.3905): ["1.386", "1.388", "1.390", "1.392"],
    (0.0, 10.0): ["0.0", "2.5", "5.0", "7.5", "10.0"],
    (3.8, 4.15): ["3.8", "3.9", "4.0", "4.1", "4.2"],
    (0.0, 1e-4): ["0", "2.5e-05", "5e-05", "7.5e-05", "0.0001"],
    (0.0, 1e-3): ["0.00000", "0.00025", "0.00050", "0.00075", "0.00100"],
    (20_000.0, 20_700.0): ["20.0k", "20.2k", "20.4k", "20.6k", "20.8k"],
    (0.0, 0.0): ["0.00", "0.25", "0.50", "0.75", "1.00"],
    (2.0, 2.0): ["1.0", "1.5", "2.0", "2.5", "3.0"],
}


@pytest.mark.parametrize("values", TICKS, ids=str)
def test_labels_tell_ticks_apart_and_the_topmost_is_above_the_data(values):
    chart = line_chart("x", {"a": list(enumerate(values))})
    labels = [text for text in ET.fromstring(chart).iter(f"{SVG}text") if text.attrib.get("text-anchor") == "end"]
    told = [label.text for label in labels if label.text not in ("step", "a")]
    assert told == TICKS[values]
    highest = min(y for line in drawn(chart) for _, y in line)
    assert min(float(label.attrib["y"]) - 3.5 for label in labels if label.text in told) <= highest + 0.1


def test_steps_are_whole():
    assert {"step", "1", "2", "3"} < set(words(line_chart("x", {"a": [(1, 0.0), (2, 1.0), (3, 3.0)]})))
    assert "1.5" not in words(line_chart("x", {"a": [(1, 0.0), (3, 3.0)]}))


POINTS = [
    {"step": step, "routing": {"m.layers.0": {"load": [0.5, 0.5], "balance": 1.0, "entropy": 0.7}}}
    for step in (1, 2, 3)
]


def test_a_note_has_charts_of_what_it_saw():
    titles = [words(chart)[0] for chart in charts({"step": "train", "figures": POINTS})]
    assert titles == [
        "balance of experts (1 is even)",
        "routing entropy (nats)",
        "load of experts at the end, in % (50 is even)",
    ]
    assert charts({"step": "quantize"}) == []
    curve = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "validation": 3.0},
        {"step": 3, "loss": 1, "validation": 2},
    ]
    assert "validation" in words(charts({"step": "train", "curve": curve})[0])


def test_a_mixed_loss_is_named_and_the_distance_has_a_chart_of_its_own():
    points = [{"step": step, "loss": 3.0 - step, "kl": 0.1 * step, "learning_rate": 0.1} for step in (1, 2)]
    curve = [point | {"validation": 2.5} for point in points]
    note = {"step": "train", "figures": points, "curve": curve, "distillation": {"kl": 0.2}}
    loss, distance, rate = (words(chart) for chart in charts(note | {"learning_rates": {"router": {"rate": 0.01}}}))
    assert {"loss", "training (task and teacher)", "validation (task)"} < set(loss)
    assert distance[0] == "KL to the teacher (nats)"
    assert rate[0] == "learning rate of all but router"


def test_what_a_note_says_of_data_search_and_rates():
    data = {"sources": {"a": 1200, "b": 7}, "packed": {"fill": 0.9712, "samples_a_row": 3.25}, "bad_rows": 2}
    bucketed = {"bucketed": {"padding": 0.05, "padding_unsorted": 0.4}, "short": "a has 3"}
    search = {"learning_rate": 0.004, "losses": {"0.001": 3.91, "0.004": 3.85, "0.5": None}}
    rates = {"router": {"rate": 0.01, "values": 5}}
    assert figures({"data": data, "search": search, "learning_rates": rates}) == [
        "samples a: 1,200, b: 7",
        "rows 97.12 % full, 3.25 samples a row",
        "2 bad rows skipped",
        "learning rate 0.004, the best of the validation losses 0.001: 3.91, 0.004: 3.85, 0.5: not finite",
        "learning rates of their own: router 0.01",
    ]
    assert figures({"data": bucketed}) == ["5.00 % padding (40.00 % unsorted)"]
    assert callouts({"data": bucketed}) == [["data", "a has 3"]]


def test_dead_experts_are_called_out_by_layer():
    dead = [{"layer": "a", "expert": 1, "step": 5}, {"layer": "b", "expert": 0, "step": 6}]
    dead.append({"layer": "a", "expert": 3, "step": 9})
    [first, second] = callouts({"dead_experts": dead})
    assert first[0] == "a"
    assert "expert 1 (since step 5), 3 (since step 9)" in first[1]
    assert second[0] == "b"
    assert callouts({}) == []
