"""`mote-quant evaluate` on saved models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote_quant.data.stdlib_text.processor import VOCABULARY, build_processor
from tests import pico

Mote = Callable[..., Any]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("reader")
    pico.PICO["qwen2"](vocab_size=VOCABULARY, max_position_embeddings=512).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


def test_on_data_with_router_statistics(mote: Mote, finished: tuple[Any, Path], pico_data: list[str]) -> None:
    result = mote("evaluate", finished[1], "--data", "pico", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tasks"] == {}
    assert (found["data"]["name"], found["data"]["split"]) == ("pico", "test")
    assert found["data"]["loss"] > 0
    assert found["data"]["routing"]["load_min"] + found["data"]["routing"]["load_max"] == pytest.approx(1)
    assert pico_data == ["pico"]


def test_figures_go_into_the_card_when_asked(
    mote: Mote, finished: tuple[Any, Path], pico_data: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[1], folder)
    before = (folder / "README.md").read_text()
    mote("evaluate", folder, "--data", "pico")
    assert (folder / "README.md").read_text() == before
    found = json.loads(mote("evaluate", folder, "--data", "pico", "--card", "--json").stdout)
    assert f"| loss on pico | {found['data']['loss']:.6g} |" in (folder / "README.md").read_text()
    mote("evaluate", folder, "--data", "pico", "--limit", "2", "--card")
    card = (folder / "README.md").read_text()
    assert "| loss on pico (first 2 samples) |" in card
    assert "| loss on pico |" in card
    (folder / "README.md").write_text("My own words.")
    refused = mote("evaluate", folder, "--data", "pico", "--card")
    assert refused.exit_code == 2
    assert "enter the figures by hand" in refused.stderr
    assert (folder / "README.md").read_text() == "My own words."


def test_limit_and_tables(mote: Mote, finished: tuple[Any, Path], pico_data: list[str]) -> None:
    shown = mote("evaluate", finished[1], "--data", "pico", "--limit", "2").stdout
    rows = dict(line.split() for line in shown.splitlines() if len(line.split()) == 2)
    assert rows["tokens"] == "16"
    assert {"loss", "perplexity", "load_min", "entropy"} <= set(rows)


def test_on_tasks(mote: Mote, reader: Path) -> None:
    result = mote("evaluate", reader, "--tasks", "stdlib_next_line, stdlib_passages", "--limit", "3", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["data"] is None
    assert found["tasks"]["stdlib_next_line.samples"] == found["tasks"]["stdlib_passages.samples"] == 3
    assert found["tasks"]["stdlib_passages.bits_per_byte"] > 0


def test_a_file_of_any_size_is_measured_whole(mote: Mote, reader: Path, tmp_path: Path) -> None:
    tokens = []
    for count in (1, 40):
        (tmp_path / "test.jsonl").write_text('{"prompt": "1 + 1 =", "completion": " 2"}\n' * count)
        result = mote("evaluate", reader, "--data", tmp_path / "test.jsonl", "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)["data"]
        assert found["split"] == "all"
        tokens.append(found["tokens"])
    assert tokens[1] == 40 * tokens[0] > 0
    shown = mote("evaluate", reader, "--data", tmp_path / "test.jsonl", "--limit", "1").stdout
    assert shown.startswith("On ")
    assert "held-out" not in shown


def test_requests_that_cannot_be_met(mote: Mote, finished: tuple[Any, Path], tmp_path: Path) -> None:
    for arguments, why in (
        ([finished[1]], "nothing to measure"),
        ([tmp_path / "absent", "--data", "stdlib-text"], "is no folder"),
        ([finished[1], "--tasks", "stdlib_passages"], "needs the model's tokenizer"),
        ([finished[1], "--tasks", "stdlib_passages", "--task-folder", tmp_path / "absent"], "no such folder of tasks"),
    ):
        result = mote("evaluate", *arguments)
        assert result.exit_code == 2, result.stderr
        assert why in result.stderr
