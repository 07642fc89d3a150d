"""Runs with narrow and with low-rank experts are stopped and go on to the same bytes."""

from __future__ import annotations

import pytest

from mote_quant import pipeline
from mote_quant.hf.integrity import sha256
from mote_quant.steps import Silent
from tests import pico
from tests.sources import source_for
from tests.stopping import Stop, StopError


@pytest.mark.parametrize(("title", "at", "kept"), [("training", 3, "checkpoint-2"), ("quantizing", 1, "state")])
@pytest.mark.parametrize("shape", [{"lora_rank": 4}, {"split": 2, "top_k": 2, "noise": 0.1}], ids=["lora", "split"])
def test_a_stopped_run_goes_on_to_the_same_bytes(shape, title, at, kept, tmp_path):
    train = {"what": ["routed", "router"], "data": "pico", "steps": 4, "batch_size": 2, "checkpoint_every": 2}
    steps = [{"upcycle": shape}, {"train": train}, {"quantize": {}}]
    recipe = {"name": "shapes", "bits": {"shared": "int8", "routed": "bfloat16"}, "pipeline": steps}

    def go(name: str, progress: Silent) -> str:
        model = pico.PICO["qwen2"]()
        options = pipeline.Options(progress)
        pipeline.apply(recipe, model, data=source_for(model), output=tmp_path / name, options=options)
        return sha256(tmp_path / name / "model.safetensors")

    with pytest.raises(StopError):
        go("stopped", Stop(title, at))
    assert [path.name for path in (tmp_path / "stopped" / "run" / "steps").glob("*/*")] == [kept]
    assert go("stopped", Silent()) == go("whole", Silent())
