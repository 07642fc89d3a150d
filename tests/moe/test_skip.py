from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mote_quant
from mote_quant.errors import CalibrationError, ModelError, RecipeError
from mote_quant.hf.loading import load_model
from mote_quant.moe import MoteLayout, blocks
from mote_quant.moe.experts import Expert
from mote_quant.moe.router import confidence
from mote_quant.moe.skip import check_skippable, skip_experts
from mote_quant.planning import plan
from mote_quant.recipe import load
from tests import pico
from tests.mixtures import TERNARY, bits_of, logits, mixture, one_block, reloaded
from tests.sources import source_for

SHARED = ["additive", "convex", "zero_init"]


def tokens(count: int = 40, hidden: int = 32) -> torch.Tensor:
    return torch.randn(count, hidden, generator=torch.Generator().manual_seed(1))


def block_of(below: float, **settings):
    """The same block with and without a threshold, in eval mode."""
    block = one_block(TERNARY, router_std=1.0, **settings).eval()
    if settings.get("combine") == "zero_init":
        with torch.no_grad():
            block.gate.scale.fill_(0.7)
    whole = one_block(TERNARY, router_std=1.0, **settings).eval()
    whole.load_state_dict(block.state_dict())
    block.layout = replace(block.layout, skip_below=below)
    return block, whole


def middle(block, x, shared=True):
    """A threshold between the confidences of the tokens."""
    return float(confidence(block.gate(x), shared).median())


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("combine", SHARED)
def test_a_skipped_token_takes_the_shared_expert_alone(combine, top_k):
    x = tokens()
    _, whole = block_of(0.0, combine=combine, top_k=top_k)
    block, whole = block_of(middle(whole, x), combine=combine, top_k=top_k)
    spared = confidence(whole.gate(x), shared=True) < block.layout.skip_below
    assert 5 < spared.sum() < 35
    y = block(x)
    assert torch.equal(y[spared], whole.shared_expert(x)[spared])
    torch.testing.assert_close(y[~spared], whole(x)[~spared])
    assert not torch.allclose(y[spared], whole(x)[spared])


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False])
def test_without_a_shared_expert_the_first_one_is_left(normalize):
    x = tokens()
    settings = {"shared": "none", "top_k": 3, "normalize_gates": normalize}
    _, whole = block_of(0.0, **settings)
    block, whole = block_of(middle(whole, x, shared=False), **settings)
    choice = whole.gate(x)
    spared = confidence(choice, shared=False) < block.layout.skip_below
    assert 5 < spared.sum() < 35
    y = block(x)
    torch.testing.assert_close(y[~spared], whole(x)[~spared])
    for token in spared.nonzero().flatten().tolist():
        alone = whole.visit(int(choice.experts[token, 0]), x[token : token + 1])[0]
        weight = 1.0 if normalize else choice.probabilities[token].max()
        torch.testing.assert_close(y[token], weight * alone)


@torch.no_grad()
def test_skipped_tokens_are_not_sent_through_the_experts(monkeypatch):
    x = tokens()
    _, whole = block_of(0.0)
    block, _ = block_of(middle(whole, x))
    rows = []
    forward = Expert.forward
    monkeypatch.setattr(Expert, "forward", lambda self, x, act: rows.append(len(x)) or forward(self, x, act))
    block(x)
    kept = int((confidence(whole.gate(x), shared=True) >= block.layout.skip_below).sum())
    assert sum(rows) == kept < len(x)


@torch.no_grad()
def test_all_tokens_skipped_is_the_shared_expert():
    block, whole = block_of(1.0, top_k=2)
    x = tokens(6)
    assert torch.equal(block(x), whole.shared_expert(x))


@torch.no_grad()
@pytest.mark.parametrize("combine", SHARED)
def test_training_and_a_threshold_of_zero_skip_nothing(combine):
    x = tokens()
    block, whole = block_of(1.0, combine=combine)
    assert torch.equal(block.train()(x), whole.train()(x))
    block, whole = block_of(0.0, combine=combine)
    assert torch.equal(block(x), whole(x))


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.0, 0.99))
def test_the_rate_is_met_on_calibration_and_never_exceeded(rate):
    model = mixture(TERNARY, router_std=0.5)
    batches = [calibration(model, seed) for seed in range(3)]
    notes = skip_experts(model, batches, batches[:1], rate)
    first = next(iter(notes["layers"].values()))
    seen = 3 * batches[0]["input_ids"].numel()
    # Tokens that are alike stay together: up to a few fewer are skipped.
    assert rate - 4 / seen <= first["calibration"] <= rate
    for row in notes["layers"].values():
        assert row["calibration"] == pytest.approx(rate, abs=0.3)  # of a layer after one that skips, roughly
        assert 0.0 <= row["held_out"] <= 1.0


def calibration(model, seed, padded=False):
    batch = pico.inputs(model, batch=4, length=12, seed=seed)
    batch.pop("labels")
    if padded:
        batch["attention_mask"][1:, 4:] = 0
    return batch


def test_padding_has_no_say():
    model = mixture(TERNARY, router_std=0.5, layers=1)
    batch = calibration(model, 0, padded=True)
    notes = skip_experts(model, [batch], [], 0.5)
    (row,) = notes["layers"].values()
    assert row["calibration"] == pytest.approx(0.5)  # half of the 24 tokens; with padding it would be some other share
    assert row["held_out"] is None
    (block,) = blocks(model).values()
    found = []
    block.gate.register_forward_hook(lambda m, a, choice: found.append(confidence(choice, shared=True)))
    model(**batch)
    real = found[0][batch["attention_mask"].flatten().bool()]
    assert int((real < block.layout.skip_below).sum()) == 12


def test_thresholds_survive_saving(tmp_path):
    model = mixture(TERNARY, router_std=0.5)
    before = logits(model)
    skip_experts(model, [calibration(model, 0)], [], 0.5)
    after = logits(model)
    assert not torch.equal(before, after)
    again = reloaded(model, tmp_path)
    assert [b.layout for b in blocks(again).values()] == [b.layout for b in blocks(model).values()]
    torch.testing.assert_close(logits(again), after)


def test_a_layout_of_an_older_file_skips_nothing():
    layout = one_block(TERNARY).layout
    values = layout.to_dict()
    del values["skip_below"]
    assert MoteLayout.from_dict(values) == layout
    assert layout.skip_below == 0.0


def test_calibration_changes_no_weight():
    model = mixture(TERNARY)
    before = bits_of(model.state_dict())
    skip_experts(model, [calibration(model, 0)], [], 0.3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def recipe(rate, upcycle=None, **quantize):
    step = {"calibration": {"data": "pico", "samples": 8, "batch_size": 4}, "skip_rate": rate} | quantize
    pipeline = [{"upcycle": {"noise": 0.3, "router_std": 0.5} | (upcycle or {})}, {"quantize": step}]
    return {"name": "skip", "bits": TERNARY, "pipeline": pipeline}


def test_a_whole_run_notes_what_it_skips(tmp_path):
    model = pico.PICO["llama"]()
    mote_quant.apply(recipe(0.25), model, data=source_for(model), output=tmp_path)
    (note,) = [n["skip"] for n in json.loads((tmp_path / "run" / "report.json").read_text())["steps"] if "skip" in n]
    assert note["rate"] == 0.25
    assert list(note["layers"]) == [block.layout.path for block in blocks(model).values()]
    for block in blocks(model).values():
        row = note["layers"][block.layout.path]
        assert row["threshold"] == block.layout.skip_below > 0.0
        assert 0.0 < row["calibration"] < 0.5
        assert 0.0 <= row["held_out"] <= 1.0
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(model))


def test_a_recipe_without_a_rate_leaves_thresholds_alone():
    model = pico.PICO["llama"]()
    mote_quant.apply(recipe(0.0), model, data=source_for(model))
    assert all(block.layout.skip_below == 0.0 for block in blocks(model).values())


def test_recipes_that_cannot_skip():
    with pytest.raises(RecipeError, match=r"skip_rate: finds its thresholds on samples"):
        load(recipe(0.2, calibration=None))
    with pytest.raises(RecipeError, match=r"skip_rate: would leave tokens without any expert"):
        load(recipe(0.2, upcycle={"shared": "none"}))
    assert load(recipe(0.2, upcycle={"shared": "none", "top_k": 2}))
    assert load(recipe(0.0, upcycle={"shared": "none"}, calibration=None))
    with pytest.raises(RecipeError, match="skip_rate"):
        load(recipe(1.0))
    dense = {"name": "x", "bits": {"ffn": "int8"}, "pipeline": recipe(0.2)["pipeline"][1:]}
    with pytest.raises(ModelError, match="this model has none"):
        plan(dense, pico.PICO["llama"]())


def test_refuses_what_it_cannot_skip():
    with pytest.raises(ModelError, match="this model has none"):
        check_skippable(pico.PICO["llama"]())
    with pytest.raises(ModelError, match="without any expert"):
        check_skippable(mixture(shared="none", top_k=1))
    with pytest.raises(CalibrationError, match="needs calibration tokens"):
        skip_experts(mixture(TERNARY), [], [], 0.2)
