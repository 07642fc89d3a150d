"""The shipped post-training recipes, one a method and one for `bits: auto`, run as they are on pico models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import mote_quant
from mote_quant.recipe import dump, load
from tests import pico
from tests.mixtures import logits
from tests.sources import source_for

DENSE = ("ptq-rtn", "ptq-gptq", "ptq-awq", "ptq-hqq", "ptq-nf4")
AUTO = ("mote-text-auto", "moe-text-auto")


def ran(name: str, model, folder: Path) -> dict:
    mote_quant.apply(name, model, data=source_for(model, samples=150), output=folder)
    again = type(model).from_pretrained(folder)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    return json.loads((folder / "run" / "report.json").read_text())


@pytest.mark.parametrize("name", DENSE)
def test_a_recipe_of_each_method(name: str, tmp_path: Path) -> None:
    report = ran(name, pico.PICO["llama"](), tmp_path)
    modules = report["steps"][0]["modules"]
    assert {note["role"] for note in modules.values()} == {"ffn", "attention"}
    method = name.removeprefix("ptq-")
    assert {note["method"] for note in modules.values()} == {"rtn" if method == "nf4" else method}
    assert not any("fallback" in note for note in modules.values())


@pytest.mark.parametrize("name", AUTO)
def test_a_recipe_of_bits_auto(name: str, tmp_path: Path) -> None:
    recipe = short(name)
    recipe["bits"] = {target: fitted(spec) for target, spec in recipe["bits"].items()}
    model = pico.PICO["llama"]()
    mote_quant.apply(recipe, model, data=source_for(model, samples=150), output=tmp_path)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    chosen, *uniform = report["steps"][-1]["allocation"]["mixes"]
    assert chosen["average_bits"] <= {"mote-text-auto": 3.0, "moe-text-auto": 2.5}[name]
    assert {row["format"] for row in uniform} == {"int2", "int3", "int4"}
    assert report["bytes"]["predicted"] == report["bytes"]["stored"]
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def short(name: str) -> dict:
    """The shipped recipe, trained for two steps."""
    values = yaml.safe_load(dump(load(name)))
    for step in values["pipeline"]:
        if "train" in step:
            step["train"] |= {"steps": 2, "max_length": 16}
        if "quantize" in step:
            step["quantize"]["calibration"] |= {"max_length": 16, "samples": 16}
    return values


def fitted(spec):
    """Groups of 64 are longer than the rows of a pico model."""
    return spec | {"group_size": 16} if isinstance(spec, dict) and "group_size" in spec else spec
