from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from mote_quant.cli.models import open_model, to_plan
from mote_quant.data.digits_vqa import model as dense
from mote_quant.data.digits_vqa import processor


def test_an_embedded_model_is_built_under_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "build_dense", lambda seed: f"built under {seed}")
    monkeypatch.setattr(processor, "build_processor", lambda: "processor")
    assert open_model("digits-vqa", 5) == ("built under 5", "processor")


def test_a_folder_is_opened_in_its_own_types_without_a_processor(model: str) -> None:
    opened, found = open_model(model, 0)
    assert isinstance(opened, PreTrainedModel)
    assert found is None


@pytest.mark.parametrize("name", ["digits-vqa", "stdlib-text", "Qwen2.5-3B", "Qwen/qwen2.5-3b", "Qwen2.5-4B"])
def test_names_are_left_to_the_planner(name: str) -> None:
    assert to_plan(name) == name
