from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import pico

Mote = Callable[..., Any]
MINE = """\
name: mine
base: {model: x}
data: y
contenders:
  dense: {group: dense, variants: {bf16: {ffn: bfloat16}, int4: {ffn: {format: int4, group_size: 128}}}}
  mote:
    group: MoTE
    experts: [2, 5]
    upcycle: {}
    qat: {routed: ternary}
    bits: {shared: {format: int4, group_size: 128}}
"""
TABLE = {"model", "match", "dense_bytes", "run", "budgets", "candidates", "impossible"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose rows take groups of 128."""
    folder = tmp_path_factory.mktemp("wide")
    pico.PICO["qwen2"](hidden=128, ffn=256).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A short list of candidates."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def test_which_models_fit(mote: Mote, wide: str) -> None:
    result = mote("plan", "--model", wide, "--budget", "0.75x", "--match", "paper")
    assert result.exit_code == 0, result.stderr
    rows = {line.strip().split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "0 B left" in rows["mote-4e-int4"]
    assert "96.0 KiB over" in rows["dense-bf16"]
    assert "  MoTE: mote-4e-int4 is the largest that fits (288 KiB, 0 B left)" in result.stdout.splitlines()
    assert "  few int4 experts: few-3e-int4 is the largest that fits (288 KiB, 0 B left)" in result.stdout.splitlines()


def test_who_only_just_misses_it(mote: Mote, wide: str, mine: str) -> None:
    shown = mote("plan", "-m", wide, "--budget", "191KiB", "--match", "paper", "--candidates", mine).stdout
    assert "  mote-2e is only 1.00 KiB too large" in shown.splitlines()
    assert "dense-bf16 is only" not in shown


def test_several_budgets_as_json_with_a_cache(mote: Mote, wide: str, mine: str) -> None:
    options = ["--candidates", mine, "--budget", "0.5x", "--budget", "1x", "--context", "64", "--batch", "3", "--json"]
    result = mote("plan", "--model", wide, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == TABLE
    assert [budget["text"] for budget in found["budgets"]] == ["0.5x", "1x"]
    assert found["run"] == {"context": 64, "batch": 3, "cache_bytes": 3 * 64 * 2 * 2 * 64 * 2}
    fits = {row["contender"]: row["fits"] for row in found["candidates"]}
    assert fits == {"mote-5e": ["1x"], "dense-bf16": ["1x"], "mote-2e": ["1x"], "dense-int4": ["0.5x", "1x"]}


def test_a_budget_nothing_fits_is_an_error_after_the_table(mote: Mote, wide: str, mine: str) -> None:
    result = mote("plan", "--model", wide, "--candidates", mine, "--budget", "1KiB", "--budget", "1x")
    assert result.exit_code == 2
    assert "dense-int4" in result.stdout
    assert "MoTE: none fits" in result.stdout
    assert result.stderr.startswith("error: nothing fits 1KiB: the smallest candidate, dense-int4, takes ")
    as_json = mote("plan", "--model", wide, "--candidates", mine, "--budget", "1KiB", "--json")
    assert as_json.exit_code == 2
    assert set(json.loads(as_json.stdout)) == TABLE


def test_a_list_of_one_s_own_with_settings(mote: Mote, wide: str, mine: str) -> None:
    options = ["--model", wide, "--budget", "0.75x", "--match", "paper", "--candidates", mine, "--json"]
    found = json.loads(mote("plan", *options, "--set", "contenders.mote.experts=[4, 6]").stdout)
    fits = {row["contender"]: row["fits"] for row in found["candidates"]}
    assert fits == {"mote-4e": ["0.75x"], "dense-int4": ["0.75x"], "dense-bf16": [], "mote-6e": []}


def test_whether_a_recipe_fits(mote: Mote, recipe: str, model: str) -> None:
    options = ["plan", recipe, "--model", model, "--json"]
    plain = json.loads(mote(*options).stdout)
    size = sum(plain["roles"][role]["stored_bytes"] for role in ("routed", "shared"))
    found = json.loads(mote(*options, "--budget", str(size - 5), "--budget", "1x", "--context", "8").stdout)
    budgets, run = found.pop("budgets"), found.pop("run")
    # What is free on this machine, and how fast it is, is not the same twice.
    del found["estimate"], plain["estimate"]
    assert found == plain
    assert budgets[0] == {
        "text": str(size - 5),
        "bytes": size - 5,
        "match": "stored",
        "experts_bytes": size,
        "left_bytes": -5,
        "fits": False,
    }
    assert (budgets[1]["bytes"], budgets[1]["fits"]) == (2 * 2 * 3 * 32 * 48, True)
    assert run == {"context": 8, "batch": 1, "cache_bytes": 1024, "run_bytes": plain["resident_bytes"] + 1024}


def test_whether_a_recipe_fits_in_words(mote: Mote) -> None:
    options = ["--budget", "3.4GB", "--budget", "3.41GB", "--match", "paper", "--context", "8192"]
    shown = mote("plan", "mote-qwen2.5-3b", *options).stdout
    rows = {line.strip().split("  ")[0]: line for line in shown.splitlines()}
    assert "no    1.40 MiB over" in rows["3.4GB"]
    assert "yes   8.84 MiB left" in rows["3.41GB"]
    assert "288 MiB" in rows["8,192 x 1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to plan: give a recipe, or --model and --budget"),
        (["--model", "Qwen2.5-3B"], "nothing to plan"),
        (["--budget", "1GB"], "--budget without a recipe needs --model"),
        (["--budget", "much", "--model", "Qwen2.5-3B"], "'much' is not a size"),
        (["--budget", "1GB", "--model", "Qwen2.5-4B"], "did you mean"),
        (["mote-qwen2.5-3b", "--match", "paper"], "--match says what budgets count: add --budget"),
        (["mote-qwen2.5-3b", "--batch", "2"], "--batch is about the KV cache: add --context"),
        (["mote-qwen2.5-3b", "--budget", "1GB", "--candidates", "candidates"], "a recipe or --candidates, not both"),
        (["mote-qwen2.5-3b", "--budget", "-1GB"], "'-1GB' is not a size"),
        (["--budget", "1GB", "--model", "Qwen2.5-3B", "--candidates", "nobody"], "there is no sweep nobody"),
        (["--budget", "1GB", "--model", "Qwen2.5-3B", "--context", "0"], "--context"),
        (["--budget", "1GB", "--model", "Qwen2.5-3B", "--match", "guess"], "--match"),
    ],
)
def test_bad_requests(arguments: list[str], words: str, mote: Mote) -> None:
    result = mote("plan", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
