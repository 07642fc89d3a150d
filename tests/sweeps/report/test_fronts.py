"""The front against its definition, against the 20-line script, and the best that fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.evaluate.pareto import front
from mote_quant.sweeps.report.fronts import best_that_fit, fronts
from mote_quant.sweeps.report.sheets import points_csv
from tests.sweeps.results import KIB, document

SCRIPT = Path(__file__).parents[3] / "eval" / "front.py"


def beats(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), max_size=12))
def test_the_front_is_what_nobody_beats(points):
    found = front(points, lambda point: point[0], lambda point: point[1])
    assert found == sorted(point for point in points if not any(beats(other, point) for other in points))


def test_fronts_follow_the_direction_of_the_score():
    upside_down = document(score="loss", higher_is_better=False)
    names = [contender.name for contender in fronts(upside_down)["stored"]]
    assert names == ["dense-int4", "few-int4", "mote-int3", "mote-int4", "mote-int8", "moe-int8"]
    assert names != [contender.name for contender in fronts(document(score="loss"))["stored"]]


def test_every_accounting_has_its_own_front():
    found = {name: [contender.name for contender in best] for name, best in fronts(document()).items()}
    assert found["stored"][:2] == ["dense-int4", "few-int4"]
    assert found["resident"][:2] == ["few-int4", "mote-int4"]
    assert found.keys() == {"paper", "stored", "resident"}


def test_a_contender_without_a_score_is_on_no_front():
    broken = document()
    for point in broken["points"]:
        if point["contender"] == "dense-int4":
            point["accuracy"] = float("nan")
    assert "dense-int4" not in [contender.name for contender in fronts(broken)["stored"]]


def test_the_best_of_each_group_that_fits():
    best = {group: one.name for group, one in best_that_fit(document(), 40 * KIB, "stored").items()}
    assert best == {
        "dense": "dense-int4",
        "full-precision MoE": "moe-int3",
        "few int4 experts": "few-int4",
        "MoTE": "mote-int4",
    }
    assert best_that_fit(document(), 13 * KIB - 1, "stored") == {}


def test_among_equals_the_smaller_fits_best():
    assert best_that_fit(document(), 100 * KIB, "stored")["MoTE"].name == "mote-int8"


@pytest.mark.parametrize("accounting", ["paper", "stored", "resident"])
@pytest.mark.parametrize(("score", "higher", "flags"), [("accuracy", True, []), ("loss", False, ["--lower"])])
def test_twenty_lines_that_know_nothing_of_us_find_the_same_front(tmp_path, accounting, score, higher, flags):
    results = document(score=score, higher_is_better=higher)
    sheet = tmp_path / "points.csv"
    sheet.write_text(points_csv(results))
    command = [sys.executable, str(SCRIPT), str(sheet), "--size", f"{accounting}_bytes", "--score", score, *flags]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(printed) == sorted(contender.name for contender in fronts(results)[accounting])
