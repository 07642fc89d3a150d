"""`mote-quant plan --processes N`: what each device will hold, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mote_quant.cli import app
from tests import pico

RECIPE = """\
name: shared
bits: {routed: ternary}
pipeline:
  - upcycle: {experts: 2}
  - train: {what: [routed, router], data: pico, steps: 4, batch_size: 4, max_length: 16}
  - quantize
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    pico.PICO["llama"]().save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    return ["plan", str(folder / "recipe.yaml"), "--model", str(Path(folder / "model")), "--no-times"]


def test_both_ways_to_share_are_told(given: list[str]) -> None:
    done = CliRunner().invoke(app, [*given, "--processes", "2", "--json"])
    assert done.exit_code == 0, done.output
    ddp, fsdp2 = json.loads(done.stdout)["estimate"]["training"]
    assert [ddp["sharding"], fsdp2["sharding"]] == ["ddp", "fsdp2"]
    assert ddp["processes"] == fsdp2["processes"] == 2
    assert fsdp2["bytes"]["optimizer"] == ddp["bytes"]["optimizer"] / 2
    assert ddp["total_bytes"] == sum(ddp["bytes"].values())


def test_the_one_that_was_named_is_told_alone(given: list[str]) -> None:
    done = CliRunner().invoke(app, [*given, "--devices", "2", "--sharding", "fsdp2"])
    assert done.exit_code == 0, done.output
    assert "2 processes, fsdp2" in done.stdout
    assert "ddp" not in done.stdout


def test_both_ways_are_told_where_none_is_named_and_the_help_says_so(given: list[str]) -> None:
    done = CliRunner().invoke(app, [*given, "--devices", "2"])
    assert "2 processes, ddp" in done.stdout
    assert "2 processes, fsdp2" in done.stdout
    shown = CliRunner().invoke(app, ["plan", "--help"]).stdout
    assert "accelerate" not in shown, "a plan asks no launcher"


EIGHT_BIT = ["--set", "pipeline.1.train.optimizer=adamw_bnb_8bit", "--processes", "2"]


def test_states_in_blocks_are_not_shared_out(given: list[str]) -> None:
    done = CliRunner().invoke(app, [*given, *EIGHT_BIT, "--json"])
    assert [row["sharding"] for row in json.loads(done.stdout)["estimate"]["training"]] == ["ddp"]
    refused = CliRunner().invoke(app, [*given, *EIGHT_BIT, "--sharding", "fsdp2"])
    assert refused.exit_code == 2
    assert "optimizer: adamw_bnb_8bit keeps its states in blocks that cut across the rows" in refused.stderr
    assert not refused.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--processes", "3"], "4 samples cannot be shared by 3 processes"), (None, "for the training of a recipe")],
    ids=["a batch that cannot be shared", "no recipe"],
)
def test_what_cannot_be_told_is_refused(arguments: list[str] | None, words: str, given: list[str]) -> None:
    without = ["plan", "--model", "Qwen2.5-0.5B", "--budget", "1GB", "--processes", "2"]
    done = CliRunner().invoke(app, without if arguments is None else [*given, *arguments])
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize("asked", [["--processes", "2"], ["--sharding", "ddp"]])
def test_devices_of_a_recipe_that_trains_nothing_are_refused(asked: list[str], given: list[str]) -> None:
    done = CliRunner().invoke(app, ["plan", "ptq-rtn", *given[2:], *asked])
    assert done.exit_code == 2
    assert "nothing in this recipe trains" in done.stderr
