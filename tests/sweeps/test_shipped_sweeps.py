"""Every shipped sweep is loaded, its recipes are made and planned, and somebody fits each of its budgets."""

from __future__ import annotations

from pathlib import Path

import pytest

from mote_quant.data.embedded import EMBEDDED
from mote_quant.memory import facts
from mote_quant.sweeps.catalogue import shipped_sweeps
from mote_quant.sweeps.load import load_sweep
from mote_quant.sweeps.run import preview
from tests import pico

SWEEPS = shipped_sweeps()


def stand_in(name: str, folder: Path) -> list[str]:
    """Overrides that give a sweep on a model of the user's disk a pico model in `folder`; none for others."""
    model = load_sweep(name).sweep.base.model
    if model in EMBEDDED or model.rpartition("/")[2] in facts.names():
        return []
    pico.PICO["llama"](hidden=128, ffn=384).save_pretrained(folder)
    return [f"base.model={folder}", f"data={folder / 'data.jsonl'}"]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_shipped_sweep_can_be_planned(name: str, tmp_path: Path) -> None:
    loaded, selection = preview(name, stand_in(name, tmp_path))
    assert loaded.sweep.name == name
    assert selection.impossible == []
    told = {*selection.fits, *(row["contender"] for row in selection.misfits)}
    families = {candidate.family for candidate in loaded.candidates if candidate.name in told}
    assert families == set(loaded.sweep.contenders)
    fitted = {budget for budgets in selection.fits.values() for budget in budgets}
    assert fitted == {budget.text for budget in selection.budgets}


def test_the_paper_s_points_are_within_its_budgets() -> None:
    _, selection = preview("3.4gb-qwen2.5-3b")
    smallest = {name: budgets[0] for name, budgets in selection.fits.items()}
    assert {name for name, budget in smallest.items() if budget == "3.41GB"} >= {"mote-int4", "moe-int3", "few-3e-int4"}
    assert {name for name, budget in smallest.items() if budget == "4.54GB"} >= {"mote-int8", "moe-int4", "dense-bf16"}
    assert smallest["mote-bf16"] == "6.81GB"
    assert smallest["moe-bf16"] == "18.15GB"
