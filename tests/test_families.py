"""Every family of docs/models.md: what the page says of it is what it does."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.families import dense
from eval.families.builders import LANGUAGE, ODD, VISION, Builder, source_for
from eval.families.path import COLUMNS, YES, Row
from eval.families.table import DOCUMENT, TABLES, document, line
from mote_quant.inspection import inspect
from mote_quant.moe import blocks
from mote_quant.pipeline import apply
from mote_quant.planning import plan
from tests.mixtures import INT4_SHARED, TERNARY

EVERY = [(kind, family) for kind, families in TABLES.items() for family in families]


# Both print what they did well with, of the folders in sys.argv[1].
KNOWING = """
import sys
from pathlib import Path
import torch
import mote_quant
from eval.families.dense import LOADERS, logits
for expected in sorted(Path(sys.argv[1]).glob("*.pt")):
    kind, _, family = expected.stem.partition(":")
    loaded = LOADERS[kind].from_pretrained(expected.with_suffix("") / "mixture")
    torch.testing.assert_close(logits(loaded), torch.load(expected), rtol=1e-4, atol=1e-4)
    print(expected.stem)
"""
UNKNOWING = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
for expected in sorted(Path(sys.argv[1]).glob("*.pt")):
    loader = AutoModelForCausalLM if expected.stem.startswith("language:") else AutoModelForImageTextToText
    try:
        loader.from_pretrained(expected.with_suffix("") / "mixture")
    except Exception:
        print(expected.stem)
assert "mote_quant" not in sys.modules
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where families go; in the end, other processes must read what is there, and refuse it without mote_quant."""
    base = tmp_path_factory.mktemp("families")
    # Trainer collects garbage after every run: not through all of torch each time.
    gc.freeze()
    yield base
    gc.unfreeze()
    made = sorted(expected.stem for expected in base.glob("*.pt"))
    for script in (KNOWING, UNKNOWING) if made else ():
        run = [sys.executable, "-c", script, str(base)]
        done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == made


@pytest.mark.parametrize(("kind", "family"), EVERY, ids=[family for _, family in EVERY])
def test_the_page_says_what_a_family_does(kind: str, family: str, folders: Path) -> None:
    folder = folders / f"{kind}:{family}"
    row = TABLES[kind][family](folder)
    assert line(row) in DOCUMENT.read_text().splitlines()
    if kind in dense.LOADERS and row.results["reloads"] == YES:
        loaded = dense.LOADERS[kind].from_pretrained(folder / "mixture")
        torch.save(dense.logits(loaded), folder.with_name(f"{folder.name}.pt"))


def test_the_page_has_no_other_families() -> None:
    rows = [found.split(" | ")[0].removeprefix("| ") for found in DOCUMENT.read_text().splitlines() if "| " in found]
    named = [family for family in rows if family != "family"]
    assert named == [family for _, family in EVERY]


def test_the_page_is_written_from_rows() -> None:
    good = Row("Good", "language", dict.fromkeys(COLUMNS, YES))
    bad = Row("Bad", "vision-language", good.results | {"trains": "no: it | is\nbad", "exports": "1 of 2 layers"})
    page = document([good, bad])
    assert "| Good | yes | yes | yes | yes | yes | yes |  |" in page
    assert "| Bad | yes | no | yes | yes | yes | 1 of 2 layers | trains: it / is; bad |" in page
    assert "1 families, 1 of them" in page
    assert "1 families, 0 of them" in page


RECIPE = {
    "name": "family",
    "bits": TERNARY | INT4_SHARED | {"attention": "int8"},
    "pipeline": [
        {"upcycle": {"noise": 0.1, "combine": "zero_init"}},
        {"train": {"what": ["routed", "router"], "data": "pico", "steps": 2, "batch_size": 2, "warmup": 0.0}},
        {"quantize": {}},
    ],
}
ODD_FAMILIES: dict[str, Builder] = {
    "gated": LANGUAGE["Llama"],
    "fused": LANGUAGE["Phi-3"],
    "Conv1D": LANGUAGE["GPT-2"],
    "inline": LANGUAGE["OPT"],
    "residual": LANGUAGE["BLOOM"],
    "images": VISION["LLaVA"],
}


@pytest.mark.parametrize("trait", ODD_FAMILIES)
def test_sizes_that_nothing_divides_go_the_whole_path_at_once(trait: str, tmp_path: Path) -> None:
    model = ODD_FAMILIES[trait](**ODD)
    planned = plan(RECIPE, model)
    apply(RECIPE, model, data=source_for(model), output=tmp_path)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["preservation"] == {"max_abs": 0.0, "relative": 0.0}
    assert report["bytes"]["stored"] == planned.result.stored_bytes == inspect(tmp_path)["stored_bytes"]
    assert [step["step"] for step in report["steps"]] == ["upcycle", "train", "quantize"]
    loaded = type(model).from_pretrained(tmp_path)
    assert len(blocks(loaded)) == 2
    torch.testing.assert_close(dense.logits(loaded), dense.logits(model), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(blocks(model).values(), blocks(loaded).values(), strict=True):
        assert torch.equal(mine.gate.scale, theirs.gate.scale)
        assert mine.gate.scale != 0
