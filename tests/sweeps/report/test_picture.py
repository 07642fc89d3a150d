"""The picture and where its names go."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import MissingExtraError
from mote_quant.sweeps.report.labels import nearest, place_labels
from mote_quant.sweeps.report.palette import LIGHT, styles
from mote_quant.sweeps.report.picture import picture
from tests.sweeps.results import document, one_seed

FRAME = (0.0, 0.0, 800.0, 500.0)


def apart(one, other):
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@given(st.sets(st.tuples(st.integers(1, 7), st.integers(1, 4)), max_size=28))
def test_names_cover_neither_points_nor_each_other_where_there_is_room(cells):
    anchors = [(100.0 * x, 100.0 * y) for x, y in cells]
    boxes = place_labels(anchors, [(60.0, 14.0)] * len(anchors), FRAME, gap=8.0)
    points = [(x - 8, y - 8, x + 8, y + 8) for x, y in anchors]
    for at, box in enumerate(boxes):
        assert all(apart(box, other) for other in boxes[:at] + points)
        assert nearest((box[0], box[1]), FRAME) == (box[0], box[1])


def test_a_crowd_is_spread_out():
    anchors = [(400.0 + 3 * at, 250.0) for at in range(8)]
    boxes = place_labels(anchors, [(60.0, 14.0)] * 8, FRAME, gap=8.0)
    assert all(apart(one, other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_names_keep_off_lines_where_they_can():
    (free,) = place_labels([(400.0, 250.0)], [(60.0, 14.0)], FRAME, gap=8.0)
    (kept,) = place_labels([(400.0, 250.0)], [(60.0, 14.0)], FRAME, gap=8.0, lines=[free])
    assert apart(kept, free)


def test_ours_always_looks_the_same_and_groups_differ():
    looks = styles(document())
    assert looks["MoTE"] == (0, "circle")
    assert len(set(looks.values())) == len(looks) == 4
    crowd = {
        "sweep": {},
        "points": [{"contender": str(at), "family": "f", "group": str(at), "seed": 0} for at in range(40)],
    }
    assert len(set(styles(crowd).values())) == 40
    assert all(colour < len(LIGHT) for colour, _ in styles(crowd).values())


@pytest.mark.parametrize(
    "results",
    [
        document(),
        document(score="loss", higher_is_better=False, match="resident", name="$cash_"),
        one_seed(budgets=[]),
        one_seed() | {"points": one_seed()["points"][:1]},
        document() | {"points": []},
    ],
)
def test_it_is_a_png_whatever_there_is_to_draw(results):
    assert picture(results).startswith(b"\x89PNG")


def test_the_accounting_changes_the_picture():
    assert picture(document(), "resident") != picture(document())


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mote-quant\[demo\]"):
        picture(document())
