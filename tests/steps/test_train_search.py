"""The search for a learning rate: which is taken, that nothing of it is left, that it goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mote_quant.errors import ArtifactError, SaveError, TrainingError
from mote_quant.hf import integrity
from mote_quant.steps.train.session import Session
from tests import pico
from tests.mixtures import bits_of, same, train_it, upcycled

RATES = [1e-4, 1e-2, 1e-3]


def trained(folder: Path | None, search: dict | None = None, family: str = "llama", **settings) -> tuple[dict, dict]:
    model = pico.PICO[family]()
    spec = {"routed": {"format": "ternary", "granularity": "channel", "scales": "learned"}}
    context = upcycled(model, spec)
    context.folder = folder
    settings = {"steps": 4, "batch_size": 4} | settings
    train_it(model, context, **settings, **({"search": search} if search else {}))
    return bits_of(model.state_dict()), context.notes


@pytest.mark.parametrize("settings", [{}, {"fake_quantize": False}, {"ternary_ramp": 0.5, "gradient_accumulation": 2}])
def test_the_best_is_taken_and_nothing_else_of_the_search_is_left(settings):
    found, notes = trained(None, {"learning_rates": RATES, "steps": 6}, **settings)
    losses = {float(rate): loss for rate, loss in notes["search"]["losses"].items()}
    best = min(losses, key=losses.get)
    assert sorted(losses) == sorted(RATES)
    assert len(set(losses.values())) == len(RATES)
    assert notes["search"]["learning_rate"] == best
    plain, without = trained(None, learning_rate=best, **settings)
    assert same(found, plain)
    assert notes["curve"] == without["curve"]
    assert "search" not in without


def test_it_goes_on_where_it_was(monkeypatch, tmp_path):
    tried: list[float] = []
    plain = Session.attempt

    def attempt(*args):
        tried.append(args[-2].learning_rate)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(Session, "attempt", attempt)
    whole, notes = trained(None, search := {"learning_rates": RATES[:2], "steps": 3})
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, search | {"learning_rates": RATES[1:]})
    assert tried == [1e-4, 1e-2, 1e-2]
    del tried[:]
    tried += [0.0] * 3
    (tmp_path / "search.json").write_text(json.dumps({"0.0001": notes["search"]["losses"]["0.0001"]}))
    resumed, told = trained(tmp_path, search)
    assert tried[3:] == [1e-2]
    assert same(resumed, whole)
    assert told["search"] == notes["search"]
    trained(tmp_path, search)
    assert tried[3:] == [1e-2], "all is known"


def test_a_rate_that_breaks_down_is_not_taken():
    _, notes = trained(None, {"learning_rates": [1e30, 1e-3], "steps": 3}, max_grad_norm=1e30, warmup=0.0)
    assert notes["search"]["losses"]["1e+30"] is None
    assert notes["search"]["learning_rate"] == 1e-3
    with pytest.raises(TrainingError, match="not finite with any rate of"):
        trained(None, {"learning_rates": [1e30, 2e30], "steps": 3}, max_grad_norm=1e30, warmup=0.0)


def test_a_record_that_cannot_be_read_or_written(monkeypatch, tmp_path):
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"search\.json cannot be read .* delete it to search again"):
        trained(tmp_path, {"learning_rates": RATES})

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(integrity, "write_atomic", full)
    with pytest.raises(SaveError, match="No space left"):
        trained(tmp_path / "full", {"learning_rates": RATES, "steps": 1})
