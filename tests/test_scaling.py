"""The arithmetic of docs/scaling.md: bytes against real two-process trainings, the simulation against cases by hand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.scaling import tables, traffic
from eval.scaling.measure import Counted, foretold, launched
from eval.scaling.shape import Shape
from eval.scaling.simulate import Timing, step_seconds
from eval.scaling.traffic import Step
from mote_quant.estimate.imagined import Unit

TINY = Shape(hidden=64, inner=96, layers=2, experts=2, vocabulary=96, length=16, steps=1)
STEP = Step(Unit(100, 0), [Unit(1000, 400)] * 3)
TIMING = Timing(forward=1.0, backward=2.0, beside=0.5, update=0.25, bandwidth=100.0)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_processes_exchange_what_was_foretold(sharding: str) -> None:
    assert Counted.of(launched(2, sharding, TINY)) == foretold(TINY, sharding)


def test_bytes_by_hand() -> None:
    assert traffic.ddp(STEP, 4) == 2 * 3 / 4 * 1200
    assert traffic.fsdp2(STEP, 4) == 3 / 4 * (100 + 6000 + 1200)
    twice = Step(STEP.beside, STEP.layers, 2, kept=40)
    assert traffic.fsdp2(twice, 4) == 3 / 4 * 2 * (100 + 2 * 2960 + 1160) + 2 * 3 / 4 * 40
    assert traffic.ddp(twice, 4) == traffic.ddp(STEP, 4)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_alone_nothing_is_waited_for(sharding: str) -> None:
    assert step_seconds(STEP, TIMING, 1, sharding) == 3 * 3.0 + 0.5 + 0.25


def test_ddp_hides_all_but_what_comes_after_the_last_layer() -> None:
    # An exchange of a layer takes 2 * 400 / 2 / 100 = 4 s, longer than its backward: the first can begin after 5.5 s.
    assert step_seconds(STEP, TIMING, 2, "ddp") == 3.5 + 2 + 3 * 4 + 0.25
    assert step_seconds(STEP, TIMING, 2, "ddp", overlap=False) == 9.5 + 12 + 0.25


def test_fsdp2_waits_for_a_slow_wire_and_not_for_a_fast_one() -> None:
    apart = step_seconds(STEP, TIMING, 2, "fsdp2", overlap=False)
    assert apart == pytest.approx(9.75 + (100 + 6000 + 1200) / 2 / 100)
    assert 9.75 < step_seconds(STEP, TIMING, 2, "fsdp2") < apart
    fast = Timing(1.0, 2.0, 0.5, 0.25, bandwidth=1e6)
    assert step_seconds(STEP, fast, 2, "fsdp2") == pytest.approx(9.75, rel=0.001)


def test_the_page_has_every_table() -> None:
    page = tables.DOCUMENT.read_text()
    assert re.findall(r"<!-- table: (\S+) -->\n\|", page) == [*tables.TABLES]


@pytest.mark.slow
def test_the_page_holds() -> None:
    """Another table of this page is `python -m eval.scaling`."""
    page = tables.DOCUMENT.read_text()
    assert tables.filled(page) == page


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "samples"), [("ddp", 8), ("fsdp2", 8), ("fsdp2", 32)])
def test_each_of_two_processes_holds_what_plan_says(sharding: str, samples: int, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [*launcher, "eval.scaling.resident", sharding, str(samples), str(tmp_path / "found.json")]
    subprocess.run(command, check=True, env=os.environ | settings, capture_output=True, timeout=600)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["peaks"]) == 2
    for peak in found["peaks"]:
        assert found["foretold"] == pytest.approx(peak, rel=0.1)
