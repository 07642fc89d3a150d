"""The report of a run: what is in it, and what is shown of it."""

from __future__ import annotations

import copy
from html.parser import HTMLParser

import pytest

from mote_quant.report import details, render_html, render_markdown, tables

MODULES = {
    f"model.layers.{layer}.mlp.experts.{expert}.{part}": {
        "role": "routed",
        "method": "gptq",
        "format": "int3",
        "group_size": 64,
        "bits": 3.25,
        "weight_error": 0.1 + expert / 100,
        "output_error": 0.05 + expert / 100,
        "tokens": 1000 * expert,
        "seconds": 0.5,
    }
    for layer in range(2)
    for expert in range(1, 4)
    for part in ("gate_proj", "up_proj", "down_proj")
}
HIT = "model.layers.0.mlp.experts.1.gate_proj"
ATTENTION = {"role": "attention", "method": "rtn", "format": "int8", "group_size": -1, "bits": 8.01}
ATTENTION |= {"weight_error": 0.004, "output_error": None, "tokens": None, "seconds": 0.01}
FALLBACK = "no calibration token: rtn instead of gptq"
NOTE = {
    "step": "quantize",
    "seconds": 12.5,
    "modules": MODULES | {"model.layers.0.self_attn.q_proj": ATTENTION},
    "outputs": {
        "positions": 512,
        "roles": [
            {"role": "routed", "kl_before": 0.0, "kl_after": 0.02, "agreement_before": 1.0, "agreement_after": 0.95},
            {
                "role": "attention",
                "kl_before": 0.02,
                "kl_after": 0.021,
                "agreement_before": 0.95,
                "agreement_after": 0.9,
            },
        ],
        "kl": 0.021,
        "agreement": 0.9,
    },
    "allocation": {
        "budget_bytes": 1048576,
        "average_bits": 2.5,
        "uniform": [
            {"format": "int2", "bytes": 900000, "loss": 0.5},
            {"format": "int3", "bytes": 1300000, "loss": 0.1},
        ],
        "chosen": {f"layers.{n}": {"format": "int2" if n % 2 else "int3"} for n in range(30)},
    },
    "skip": {"threshold": 0.75, "layers": [{"layer": 0, "threshold": 0.7, "rate": 0.3}, {"layer": 1, "rate": 0.25}]},
    "calibration": {"data": "a.jsonl", "samples": 112, "tokens": 57344, "held_out_samples": 16},
}
TRAIN = {"step": "train", "seconds": 3.0, "tokens": 5000, "curve": [{"step": 1, "loss": 3.0}, {"step": 9, "loss": 1.0}]}
UPCYCLE = {"step": "upcycle", "preservation": {"max_abs": 0.5, "relative": 0.25}}


def report(*notes):
    weight = {"parameters": 1000, "bits": 3.25, "stored_bytes": 2048}
    sizes = {"roles": {"routed": weight}, "stored_bytes": 4096, "stored": 4096}
    coverage = [{"target": "routed", "format": "int3", "weights": 18, "bytes_before": 8192, "bytes_after": 2048}]
    return {"recipe": "a <recipe>", "steps": list(notes), "bytes": sizes, "coverage": coverage}


def changed(**modules):
    """The note with some values of one module changed."""
    note = copy.deepcopy(NOTE)
    for name, values in modules.items():
        note["modules"][name.replace("__", ".")] |= values
    return note


def shown(made, find=tables):
    return {title: (header, rows) for title, header, rows in find(made)}


def test_each_role_has_a_row_with_means_extremes_and_sums():
    header, rows = shown(report(NOTE))["How each role was quantized"]
    routed, attention = (dict(zip(header, row, strict=True)) for row in rows)
    assert routed == {
        "role": "routed",
        "modules": "18",
        "how": "int3 g64 gptq",
        "bits": "3.25",
        "weight error: mean / max": "0.12 / 0.13",
        "output error: mean / max": "0.07 / 0.08",
        "tokens: least / median": "1,000 / 2,000",
        "seconds": "9",
    }
    assert attention["how"] == "int8 rtn"
    assert attention["output error: mean / max"] == attention["tokens: least / median"] == ""


def test_several_ways_in_one_role_are_counted():
    header, rows = shown(report(changed(**{HIT.replace(".", "__"): {"format": "int4", "backend": "gptqmodel"}})))[
        "How each role was quantized"
    ]
    assert rows[0][header.index("how")] == "int3 g64 gptq (17), int4 g64 gptq gptqmodel (1)"


def test_what_did_not_go_as_asked_comes_first():
    note = copy.deepcopy(NOTE)
    for name in list(MODULES)[:3]:
        note["modules"][name] |= {"tokens": 0, "method": "rtn", "fallback": FALLBACK}
    note["modules"][list(MODULES)[5]]["few_tokens"] = True
    note["calibration"]["short"] = "128 samples were asked for"
    title, _, rows = next(iter(tables(report(note))))
    assert title == "Not as asked"
    assert rows == [
        ["3 routed modules", FALLBACK],
        ["1 routed module", "saw fewer tokens than they have inputs: use more samples"],
        ["calibration", "128 samples were asked for"],
    ]
    assert "Not as asked" not in shown(report(NOTE))


def test_every_module_has_a_row_among_the_details():
    made = report(changed(**{HIT.replace(".", "__"): {"fallback": FALLBACK}}))
    header, rows = shown(made, details)["Every module"]
    assert [row[0] for row in rows] == list(NOTE["modules"])
    row = dict(zip(header, rows[0], strict=True))
    assert row == {
        "module": HIT,
        "role": "routed",
        "format": "int3",
        "group": "g64",
        "method": "gptq",
        "bits": "3.25",
        "weight error": "0.11",
        "output error": "0.06",
        "tokens": "1,000",
        "seconds": "0.5",
        "remark": FALLBACK,
    }
    assert "Every module" not in shown(made)


def test_the_outputs_role_by_role_and_in_all():
    _, rows = shown(report(NOTE))["How far the outputs moved"]
    assert rows == [
        ["routed", "0", "0.02", "100.00 %", "95.00 %"],
        ["attention", "0.02", "0.021", "95.00 %", "90.00 %"],
        ["everything (512 tokens)", "", "0.021", "", "90.00 %"],
    ]


def test_allocation_shows_the_uniform_choices_beside_it_and_folds_what_is_long():
    short, long = shown(report(NOTE)), shown(report(NOTE), details)
    title = "Formats chosen within the budget"
    assert short[title][1] == [["budget bytes", "1.00 MiB"], ["average bits", "2.5"]]
    assert short[f"{title}: uniform"] == (
        ["format", "bytes", "loss"],
        [["int2", "879 KiB", "0.5"], ["int3", "1.24 MiB", "0.1"]],
    )
    assert f"{title}: chosen" not in short
    header, rows = long[f"{title}: chosen"]
    assert header == ["", "format"]
    assert rows[:2] == [["layers.0", "int3"], ["layers.1", "int2"]]
    assert len(rows) == 30


def test_calibration_and_skipping():
    found = shown(report(NOTE))
    assert ["tokens", "57,344"] in found["Calibration"][1]
    assert found["Experts skipped"][1] == [["threshold", "0.75"]]
    assert found["Experts skipped: layers"][1] == [["0", "0.7", "0.3"], ["1", "", "0.25"]]


def test_steps_and_older_notes():
    old = {"step": "quantize", "modules": {"a": {"method": "gptq", "format": "int4", "group_size": 32, "tokens": 0}}}
    found = shown(report(UPCYCLE, TRAIN, old))
    assert found["What was done"][1] == [
        ["upcycle", "0.0", "preservation: outputs moved by 0.25 (relative)"],
        ["train", "3.0", "loss 3.0000 -> 1.0000, 5,000 tokens (padding included)"],
        ["quantize", "0.0", "1 modules quantized, 1 without calibration tokens"],
    ]
    assert found["How each role was quantized"][1] == [["", "1", "int4 g32 gptq", "", "", "", "0 / 0", ""]]
    assert found["What it weighs"][1][-1] == ["total", "1,000", "", "4.00 KiB"]
    assert found["What each rule covered"][1] == [["routed", "int3", "18", "8.00 KiB", "2.00 KiB"]]


def test_a_run_without_quantization_has_no_such_tables():
    found = report(UPCYCLE, TRAIN, {"step": "quantize", "seconds": 0.1, "modules": {}})
    assert set(shown(found)) == {"What it weighs", "What each rule covered", "What was done"}
    assert shown(found, details) == {}


def test_markdown_has_every_table_in_order():
    made = report(NOTE)
    text = render_markdown(made)
    titles = [title for find in (tables, details) for title, _, _ in find(made)]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == titles
    assert "| attention | 1 | int8 rtn | 8.01 |" in text


def test_a_pipe_does_not_break_a_row_of_markdown():
    made = report(NOTE)
    made["coverage"][0]["target"] = "re:a|b"
    assert "| re:a\\|b | int3 |" in render_markdown(made)


class Page(HTMLParser):
    """Which tags stand open at each piece of text; fails where one is closed that is not open."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.found.append((data, tuple(self.open)))


def test_the_page_is_whole_escaped_and_folds_the_long_tables():
    page = Page(render_html(report(NOTE)))
    assert page.open == []
    inside = dict(page.found)
    assert "details" in inside[HIT]
    assert "details" not in inside["int3 g64 gptq"]
    assert inside["a <recipe>"][-1] in ("h1", "title")
    folded = [text for text, tags in page.found if tags[-1] == "summary"]
    assert folded == ["Every module (19)", "Formats chosen within the budget: chosen (30)"]


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_whatever_is_noted_can_be_shown(render):
    odd = {"nothing": None, "names": ["a", "b"], "empty": [], "none": {}, "mixed": [1, {"a": 2}], "yes": True}
    text = render(report(NOTE | {"allocation": odd, "skip": {"share": 0.123456}}))
    for cell in ("a, b", "True", "0.123"):
        assert cell in text
