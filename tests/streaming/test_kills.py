"""kill -9 while a model is streamed or saved, then the same command: the same bytes."""

from __future__ import annotations

import random

import pytest

from tests import pico
from tests.playing import played

RENAMES = {f"rename {nth}": [{"owner": "os", "call": "replace", "nth": nth}] for nth in range(1, 25)}
KILLS = {
    "whole": [],
    "again and again": [{"progress": {"title": "streaming", "at": at}} for at in (1, 2, 3, 4)],
    "half a report": [{"writing": "report.json"}],
    "random": [{"sleep": random.Random(n).uniform(0.05, 1.0)} for n in range(3)],
} | RENAMES


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    work = tmp_path_factory.mktemp("streamed")
    pico.saved(work / "dense", "gpt2", resid_pdrop=0.2)
    return played("tests.killing", work, KILLS, "streamed")


@pytest.mark.parametrize("name", [name for name in KILLS if name != "whole"])
def test_a_killed_stream_ends_in_the_same_bytes(answers, name):
    whole, killed = answers["whole"], answers[name]
    assert killed["statuses"][-1] == 0
    if name != "random":
        assert set(killed["statuses"][:-1]) == {-9}, "the bomb did not go off"
    assert len([file for file in whole["files"] if file.endswith(".safetensors")]) == 4
    assert killed["files"] == whole["files"]
    assert killed["left"] == whole["left"] == []
