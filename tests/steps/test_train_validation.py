"""Validation while training: what is measured, that measuring changes nothing, early stopping, the best weights."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mote_quant import pipeline
from mote_quant.errors import ArtifactError, DataError
from mote_quant.hf import checkpoint
from mote_quant.moe import blocks
from mote_quant.report.training import figures
from mote_quant.steps.train.validator import Validator
from tests import pico
from tests.mixtures import TERNARY, bits_of, recipe, same, train_it, upcycled
from tests.sources import source_for
from tests.stopping import StopError

validation_module = import_module("mote_quant.steps.train.validation")

PLAIN = validation_module.Validate.on_step_end
STEPS = 8
SCRIPT = [5.0, 4.0, 3.0, 3.5, 3.2, 2.0, 2.5, 2.4]


def trained(folder: Path | None, validation: dict | None, stop: int | None = None, **settings) -> tuple[dict, dict]:
    model = pico.PICO["gpt2"](resid_pdrop=0.2)
    context = upcycled(model, TERNARY)
    context.folder = folder
    advance = context.progress.advance

    def halt(done, **figures):
        if done == stop:
            raise StopError
        advance(done, **figures)

    context.progress.advance = halt
    settings = {"steps": STEPS, "checkpoint_every": 3, "batch_size": 2, "learning_rate": 1e-2} | settings
    train_it(model, context, **settings, **({"validation": validation} if validation else {}))
    return bits_of(model.state_dict()), context.notes


def scripted(monkeypatch, losses: list[float]) -> None:
    """What validation says after each step, whatever the weights are."""

    def on_step_end(self, args, state, control, **kwargs):
        self._loss = lambda: losses[state.global_step - 1]
        PLAIN(self, args, state, control, **kwargs)

    monkeypatch.setattr(validation_module.Validate, "on_step_end", on_step_end)


def test_looking_changes_nothing():
    plain, notes = trained(None, None, ternary_ramp=1.0, gradient_accumulation=2)
    looked, seen = trained(
        None, {"every": 1, "samples": 3, "keep_best": False}, ternary_ramp=1.0, gradient_accumulation=2
    )
    assert same(plain, looked)
    assert notes["routing"] == seen["routing"]
    assert [entry["step"] for entry in seen["validation"]["curve"]] == [*range(1, STEPS + 1)]
    kept = [{key: value for key, value in entry.items() if key != "validation"} for entry in seen["curve"]]
    assert kept == notes["curve"]
    assert all("validation" in entry for entry in seen["curve"])


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_the_loss_is_the_mean_over_the_labels_of_quantized_weights(family):
    model = pico.PICO[family]()
    source = source_for(model, samples=60)
    upcycled(model, TERNARY)
    chosen = [source.validation[index] for index in range(3)]
    batch = source.collate(chosen)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    for layer in (m for m in model.modules() if hasattr(m, "strength")):
        layer.strength = 0.0
    model.train()
    before = {name: block.routing for name, block in blocks(model).items()}
    together, apart = (Validator(model, source, 3, size, quantized=True).loss() for size in (3, 1))
    assert together == pytest.approx(float(expected), rel=1e-5)
    assert apart == pytest.approx(float(expected), rel=1e-5)
    assert Validator(model, source, 3, 3, quantized=False).loss() != pytest.approx(float(expected), rel=1e-5)
    assert model.training
    assert {layer.strength for layer in model.modules() if hasattr(layer, "strength")} == {0.0}
    assert all(before[name].load.equal(block.routing.load) for name, block in blocks(model).items())


def test_it_ends_with_the_best_weights(monkeypatch, tmp_path):
    scripted(monkeypatch, SCRIPT)
    best, notes = trained(tmp_path / "best", {"every": 1})
    assert notes["validation"]["best"] == {"step": 6, "loss": 2.0}
    assert notes["validation"]["stopped"] is None
    last, _ = trained(None, {"every": 1, "keep_best": False})
    assert not same(best, last)
    scripted(monkeypatch, [*range(STEPS, 0, -1)])
    assert same(trained(None, {"every": 1})[0], last), "the last is the best"
    # The weights of step 6 are those of a training that was stopped right after it.
    with pytest.raises(StopError):
        trained(tmp_path / "six", None, stop=7, checkpoint_every=6)
    saved = checkpoint.read(tmp_path / "six" / "checkpoint-6")
    names = [*saved.names("model")]
    assert any("experts" in name for name in names)
    assert all(torch.equal(saved.rows(f"model.{name}", 0, None), best[name]) for name in names)


def test_it_stops_early(monkeypatch, tmp_path):
    scripted(monkeypatch, SCRIPT)
    weights, notes = trained(tmp_path, {"every": 1, "patience": 2})
    assert notes["validation"]["stopped"] == 5
    assert notes["validation"]["best"] == {"step": 3, "loss": 3.0}
    assert len(notes["validation"]["curve"]) == 5
    assert figures(notes) == ["lowest validation loss 3.0000 after step 3, stopped after step 5"]
    assert notes["tokens"] == 5 * 2 * 9
    patient, notes = trained(None, {"every": 1, "patience": 3})
    assert notes["validation"]["stopped"] is None
    assert not same(weights, patient)


SLOW = [pytest.param(settings, marks=pytest.mark.slow) for settings in ({"patience": 2}, {})]


@pytest.mark.parametrize("settings", [{"patience": 2, "keep_best": False}, {"every": 3}, *SLOW])
def test_a_kill_anywhere_changes_nothing(monkeypatch, tmp_path, settings):
    scripted(monkeypatch, SCRIPT)
    settings = {"every": 1} | settings
    whole, notes = trained(tmp_path / "whole", settings)
    for stop in (4, 5) if "patience" in settings else (7,):
        with pytest.raises(StopError):
            trained(tmp_path / str(stop), settings, stop=stop)
        resumed, told = trained(tmp_path / str(stop), settings)
        assert same(resumed, whole)
        assert told["validation"] == notes["validation"]
    again, told = trained(tmp_path / "whole", settings)
    assert same(again, whole), "killed after the last step"
    assert told["validation"] == notes["validation"]


def test_a_rollback_does_not_lose_the_best_from_before(monkeypatch, tmp_path):
    """Step 4 is better than step 2, but then undone; what follows is worse than both."""
    scripted(monkeypatch, [3.0, 2.0, 2.5, 1.0, 9.0, 9.0, 9.0, 9.0])
    first = [True]

    def spike_once(self, step, gradients=True):
        if step == 4 and first:
            from mote_quant.errors import SpikeError

            first.clear()
            scripted(monkeypatch, [3.0, 2.0, 2.5, 8.0, 9.0, 9.0, 9.0, 9.0])
            raise SpikeError("the loss is nan after step 4", 4, float("nan"), None)

    monkeypatch.setattr("mote_quant.hf.guard.LossGuard.judge", spike_once)
    _, notes = trained(tmp_path, {"every": 1}, guard={"retries": 1})
    assert [r["back_to"] for r in notes["rollbacks"]] == [3]
    assert notes["validation"]["best"] == {"step": 2, "loss": 2.0}


def test_an_empty_split_says_so():
    for settings in ({"validation": {}}, {"search": {"learning_rates": [1e-3, 1e-2]}}):
        model = pico.PICO["llama"]()
        context = upcycled(model, TERNARY)
        source = dataclasses.replace(source_for(model), validation=[])
        context.open_data = lambda name, length, source=source: source
        with pytest.raises(DataError, match=r"pico has no validation samples .*leave train\.validation"):
            train_it(model, context, **settings)


def test_an_empty_split_is_found_before_anything_happens(tmp_path):
    model = pico.PICO["llama"]()
    source = dataclasses.replace(source_for(model), validation=[])
    with pytest.raises(DataError, match=r"pico has no validation samples"):
        pipeline.apply(recipe(TERNARY, {"validation": {}}), model, data=source, output=tmp_path / "out")
    assert not blocks(model)
    assert not (tmp_path / "out").exists()


def test_best_weights_that_are_gone(monkeypatch, tmp_path):
    scripted(monkeypatch, SCRIPT)
    monkeypatch.setattr(validation_module.Validate, "_keep", lambda self, step: None)
    with pytest.raises(ArtifactError, match=r"best-6 is missing.*delete"):
        trained(tmp_path, {"every": 1})
