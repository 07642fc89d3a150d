"""Every pico family: up-cycle, train, quantize, save, reload, write with and without a KV cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mote_quant.inspection import inspect
from mote_quant.moe import blocks
from mote_quant.pipeline import apply
from mote_quant.planning import plan
from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, logits
from tests.sources import source_for

RECIPE = {
    "name": "family",
    "bits": TERNARY | INT4_SHARED | {"attention": "int8"},
    "pipeline": [
        {"upcycle": {"noise": 0.1, "combine": "zero_init"}},
        {"train": {"what": ["routed", "router"], "data": "pico", "steps": 2, "batch_size": 2, "warmup": 0.0}},
        {"quantize": {}},
    ],
}


@pytest.fixture(scope="module", params=pico.PICO)
def made(request, tmp_path_factory):
    """(finished model, its folder, the plan made before)."""
    odd = pico.ODD if request.param in ("llama", "gpt2", "opt", "llava") else {}
    model = pico.PICO[request.param](**odd)
    folder = tmp_path_factory.mktemp(request.param)
    planned = plan(RECIPE, model)
    return apply(RECIPE, model, data=source_for(model), output=folder), folder, planned


def reload(model, folder: Path):
    vision = model.config.model_type in ("llava", "qwen2_5_vl")
    return (AutoModelForImageTextToText if vision else AutoModelForCausalLM).from_pretrained(folder)


def test_the_run_did_what_it_said(made):
    model, folder, planned = made
    assert len(blocks(model)) == 2
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["preservation"] == {"max_abs": 0.0, "relative": 0.0}
    assert report["bytes"]["stored"] == planned.result.stored_bytes
    assert inspect(folder)["stored_bytes"] == planned.result.stored_bytes
    assert [step["step"] for step in report["steps"]] == ["upcycle", "train", "quantize"]


def test_reload_gives_the_same_logits_with_pictures_too(made):
    model, folder, _ = made
    loaded = reload(model, folder)
    assert type(loaded) is type(model)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(blocks(model).values(), blocks(loaded).values(), strict=True):
        assert mine.layout == theirs.layout
        assert torch.equal(mine.gate.scale, theirs.gate.scale)
        assert mine.gate.scale != 0


def test_generation_with_a_cache_is_generation_without(made):
    model, folder, _ = made
    loaded = reload(model, folder)
    assert loaded.config.get_text_config().use_cache
    given = pico.inputs(loaded, batch=1)
    given.pop("labels")
    with_cache, without = (
        loaded.generate(**given, max_new_tokens=8, do_sample=False, use_cache=cached) for cached in (True, False)
    )
    assert torch.equal(with_cache, without)
    assert with_cache.shape[1] > given["input_ids"].shape[1]
