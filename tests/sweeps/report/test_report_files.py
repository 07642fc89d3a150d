"""The folder: tables, sheets and text; what is written, and what happens when it cannot be."""

from __future__ import annotations

import csv
import io
import json

import pytest

from mote_quant.errors import MissingExtraError, SaveError
from mote_quant.sweeps.report import contender_table, markdown, render_markdown, tables, write, write_report
from mote_quant.sweeps.report.sheets import points_csv, summary_csv
from mote_quant.sweeps.report.statistics import SIZES
from mote_quant.sweeps.report.tables import calibration_table, failure_table, grid_table, misfit_table
from tests.sweeps.results import document, one_seed

FILES = ["index.html", "pareto.png", "points.csv", "report.md", "results.json", "summary.csv"]
EMPTY = document() | {"points": [], "grid": [], "misfits": [], "failures": []}


def column(table, name):
    return [row[table.header.index(name)] for row in table.rows]


def test_the_best_contender_comes_first_and_only_columns_with_something_in_them():
    table = contender_table(document())
    assert column(table, "contender")[0] == "moe-bf16"
    assert column(table, "accuracy (%)")[0] == "86.2 ± 0.6"
    assert column(table, "loss before quantizing (nats)")[:2] == ["", "0.400"]
    assert "perplexity" not in table.header
    assert "least load" not in table.header
    turned = contender_table(document(score="loss", higher_is_better=False))
    assert turned.header[2] == "loss (nats)"
    assert column(turned, "contender")[-1] == "dense-int4"


def test_values_are_the_bare_cells():
    table = contender_table(document())
    place = table.header.index("stored bytes")
    assert (table.rows[0][place], table.values[0][place]) == ("192 KiB", 192 * 1024)


def test_tasks_of_lm_eval_get_columns():
    results = document()
    for point in results["points"]:
        point["piqa.acc,none"] = 0.5
    assert column(contender_table(results), "piqa.acc,none (%)")[0] == "50.0"
    assert "piqa.acc,none" in points_csv(results).splitlines()[0]


def test_the_other_tables():
    assert column(grid_table(document()), "chosen") == ["yes", ""]
    assert misfit_table(document()).rows == [["moe-bf16", "8KiB", "needs 192 KiB"]]
    assert column(failure_table(document()), "error") == ["</script><script>alert(1)"]
    assert ["few-int4", "65 ± 1", "900.5"] in calibration_table(document()).rows
    assert len(calibration_table(document()).rows) == 8


def test_empty_tables_are_left_out():
    assert [table.title for table in tables(document())][1:] == [
        "Calibration tokens an expert saw", "Learning rates tried", "What does not fit", "What failed",
    ]  # fmt: skip
    assert tables(EMPTY) == []


def test_markdown_cells_stay_cells():
    table = failure_table({"failures": [{"contender": "a|b", "error": "line\n<b>two</b> \\|"}]})
    assert markdown(table).splitlines()[2] == "| a\\|b | line &lt;b>two&lt;/b> \\\\\\| |"


def test_points_survive_the_csv():
    points = document()["points"]
    rows = list(csv.DictReader(io.StringIO(points_csv(document()))))
    assert len(rows) == len(points)
    for row, point in zip(rows, points, strict=True):
        assert "recipe" not in row
        assert "fits" not in row
        for key, text in row.items():
            value = point.get(key)
            assert text == ("" if value is None else value if isinstance(value, str) else repr(value))


def test_the_column_order_does_not_hang_on_that_of_the_keys():
    backwards = document()
    backwards["points"] = [dict(reversed(point.items())) for point in backwards["points"]]
    assert points_csv(backwards) == points_csv(document())
    header = points_csv(document()).splitlines()[0].split(",")
    assert header[:7] == ["contender", "family", "group", "seed", "learning_rate", "accuracy", "loss"]
    assert header[7:12] == list(SIZES)
    assert header[12:] == sorted(header[12:])


def test_summary_has_a_row_a_contender():
    rows = {row["contender"]: row for row in csv.DictReader(io.StringIO(summary_csv(document())))}
    assert len(rows) == 11
    assert float(rows["mote-int4"]["accuracy_mean"]) == pytest.approx(0.84)
    assert rows["mote-int4"]["accuracy_n"] == "3"
    assert rows["moe-bf16"]["unquantized_loss_mean"] == ""
    alone = next(csv.DictReader(io.StringIO(summary_csv(one_seed()))))
    assert (alone["accuracy_sd"], alone["accuracy_n"]) == ("", "1")


def test_the_text_says_it_all():
    text = render_markdown(document())
    assert text.startswith("# digits\n")
    assert "- at 40KiB (stored), MoTE (mote-int4) beats the best full-precision MoE that fits (moe-int3)" in text
    assert "- stored: dense-int4, few-int4," in text
    assert "- learning rates: 0.002, 0.004, 0.008" in text
    assert "</script>" not in text


def test_the_folder(tmp_path):
    write_report(document(), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FILES
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == document()
    assert (tmp_path / "new" / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_is_still_a_report(tmp_path):
    write_report(EMPTY, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert "Nothing to compare yet" in (tmp_path / "report.md").read_text()


def test_numbers_that_are_none_and_text_that_is_broken_do_not_cost_the_report(tmp_path):
    results = document()
    results["points"][0] |= {"accuracy": float("nan"), "loss": float("inf")}
    results["failures"][0]["error"] = "half a character: \ud800"
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["points"][0]["accuracy"] is None
    assert "half a character: ?" in (tmp_path / "report.md").read_text()


def test_without_matplotlib_all_but_the_picture_is_written(tmp_path, monkeypatch, caplog):
    def missing(_document):
        raise MissingExtraError("drawing needs matplotlib")

    monkeypatch.setattr(write, "picture", missing)
    write_report(document(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in FILES if name != "pareto.png"]
    assert "drawing needs matplotlib" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="choose another folder"):
        write_report(document(), tmp_path / "file" / "folder")
