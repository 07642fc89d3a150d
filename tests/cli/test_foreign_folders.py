"""The program on a folder that another library quantized, and on to one for another runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote_quant.recipe.schema import IntegerBits
from tests.foreign import packed_model, write_as

Mote = Callable[..., Any]
RECIPE = """\
name: grown
bits: {routed: ternary, router: float32}
pipeline:
  - upcycle: {experts: 2}
  - train: {what: [routed, router], data: pico, steps: 2, batch_size: 2}
  - quantize
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    model = packed_model("llama", IntegerBits(format="int4", group_size=32))
    return write_as("gptq", model, tmp_path / "gptq")


def test_plan_apply_inspect_export(theirs: Path, pico_data: list[str], mote: Mote, tmp_path: Path) -> None:
    recipe = tmp_path / "grown.yaml"
    recipe.write_text(RECIPE)
    planned = mote("plan", recipe, "-m", theirs, "--json")
    assert planned.exit_code == 0, planned.stderr
    done = mote("apply", recipe, "-m", theirs, "-o", tmp_path / "out", "-q")
    assert done.exit_code == 0, done.stderr
    found = mote("inspect", tmp_path / "out", "--json")
    assert json.loads(found.stdout)["stored_bytes"] == json.loads(planned.stdout)["stored_bytes"]
    assert json.loads(found.stdout)["roles"]["shared"] == json.loads(planned.stdout)["roles"]["shared"]
    again = mote("export", theirs, "--to", "gptq", "-o", tmp_path / "again", "-q")
    assert (again.exit_code, again.stdout) == (0, "")
    weighed = [json.loads(mote("inspect", folder, "--json").stdout)["roles"] for folder in (theirs, tmp_path / "again")]
    assert weighed[0] == weighed[1]


def test_a_mixture_is_no_gptq_model(theirs: Path, finished: tuple[Any, Path], mote: Mote, tmp_path: Path) -> None:
    refused = mote("export", finished[1], "--to", "gptq", "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "holds experts" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_rule_for_the_shared_expert_says_that_it_is_packed(theirs: Path, recipe: str, mote: Mote) -> None:
    refused = mote("plan", recipe, "-m", theirs)
    assert refused.exit_code == 2
    assert "packed already" in refused.stderr
    assert "leave the rule out" in refused.stderr
