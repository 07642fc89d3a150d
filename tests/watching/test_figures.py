"""The callback: in our train step and in a Trainer, through interruptions, and to wherever it writes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

import mote_quant
from mote_quant import pipeline
from mote_quant.errors import MissingExtraError, RequestError
from mote_quant.hf.integrity import sha256
from mote_quant.watching import sinks
from tests import pico
from tests.killing import Bomb
from tests.mixtures import TERNARY, bits_of, mixture
from tests.sources import source_for
from tests.stopping import Stop, StopError

STEPS = 6


def trained(tmp_path, callbacks, **settings):
    model = mote_quant.trainable(mixture(TERNARY))
    source = source_for(model)
    fixed = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2, "report_to": []}
    fixed |= {"max_steps": STEPS, "use_cpu": True, "remove_unused_columns": False, "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), disable_tqdm=True, **(fixed | settings))
    made = [callback(model) for callback in callbacks]
    rows = list(source.train)
    trainer = Trainer(model, arguments, data_collator=source.collate, train_dataset=rows, callbacks=made)
    trainer.train()
    return trainer, made


def test_any_trainer_gets_figures_and_the_same_weights(tmp_path):
    trainer, [figures] = trained(tmp_path, [mote_quant.Figures])
    plain, _ = trained(tmp_path, [])
    wanted = bits_of(plain.model.state_dict())
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in trainer.model.state_dict().items())
    assert [entry["step"] for entry in figures.curve] == [2, 4, 6]
    entry = figures.curve[0]["figures"]
    assert set(entry) == {"routing", "codes", "gradients", "tokens_per_second", "seconds_left"}
    assert set(entry["gradients"]) == {"routed", "router"}
    assert set(entry["codes"]) == {"routed", "model.layers.0", "model.layers.1"}
    assert 0 < entry["codes"]["routed"]["flips"] < 0.5
    assert entry["tokens_per_second"] > 0
    assert figures.curve[-1]["figures"]["seconds_left"] == 0.0
    json.dumps(trainer.state.log_history)


def test_gradient_norms_are_those_before_clipping(tmp_path):
    found = []
    for limit in (1e9, 1e-3):
        trainer, [figures] = trained(
            tmp_path, [mote_quant.Figures], max_steps=2, max_grad_norm=limit, learning_rate=0.0
        )
        found.append(figures.curve[0]["figures"]["gradients"])
        total = sum(norm**2 for norm in found[-1].values()) ** 0.5
        assert total == pytest.approx(trainer.state.log_history[0]["grad_norm"], rel=1e-4)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def starving(model):
    """No token reaches experts 2 and 3 of the first layer."""
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight[2:] = 0.0
        model.model.layers[0].mlp.gate.weight[1] *= -50
        model.model.layers[0].mlp.gate.weight[0] = -model.model.layers[0].mlp.gate.weight[1]
    return mote_quant.Figures(model)


def test_a_dead_expert_is_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="mote_quant"):
        _, [figures] = trained(tmp_path, [starving], max_steps=8, logging_steps=1, learning_rate=0.0)
    told = [record.getMessage() for record in caplog.records if "fair share" in record.getMessage()]
    assert len(told) == 2
    assert "expert 2 of model.layers.0 got less than 0.05 of its fair share" in told[0]
    dead = [{"layer": "model.layers.0", "expert": expert, "step": 5} for expert in (2, 3)]
    assert figures.notes()["dead_experts"] == figures.dead == dead


# --- our train step ------------------------------------------------------------------------------------------------


def go(folder, progress: Bomb | None = None, **options):
    train = {"what": ["routed", "router"], "data": "pico", "steps": STEPS, "batch_size": 2, "checkpoint_every": 2}
    steps = [{"upcycle": {"noise": 0.1}}, {"train": train}, {"quantize": {}}]
    model = pico.PICO["llama"]()
    made = pipeline.Options(progress or Bomb(), **options)
    recipe = {"name": "seen", "bits": TERNARY, "pipeline": steps}
    return pipeline.apply(recipe, model, data=source_for(model), output=folder, options=made)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        go(folder, log_to=("tensorboard", "wandb"))
    return folder


def timeless(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key not in ("tokens_per_second", "seconds_left")}


def test_an_interrupted_run_has_the_whole_curve_and_the_same_bytes(whole, tmp_path):
    with pytest.raises(StopError):
        go(tmp_path, Stop("training", 5))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    go(tmp_path)
    assert sha256(tmp_path / "model.safetensors") == sha256(whole / "model.safetensors")
    assert [timeless(line) for line in lines(tmp_path)] == [timeless(line) for line in lines(whole)]
    curves = [json.loads((folder / "run" / "report.json").read_text())["steps"][1] for folder in (whole, tmp_path)]
    assert [timeless(point) for point in curves[0]["figures"]] == [timeless(point) for point in curves[1]["figures"]]
    assert [point["step"] for point in curves[1]["figures"]] == list(range(1, STEPS + 1))


def test_the_report_has_charts(whole):
    page = (whole / "run" / "report.html").read_text()
    assert "How the training went" in page
    assert page.count("<svg") == 9
    assert "share of codes changed" in page


def test_the_file_has_a_line_a_point(whole):
    found = lines(whole)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert {line["part"] for line in found} == {"2-train"}
    assert {"loss", "learning_rate", "grad_norm", "balance", "routing", "codes", "gradients"} <= set(found[0])


def test_tensorboard_has_every_number(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "run" / "tensorboard" / "2-train"))
    events.Reload()
    names = events.Tags()["scalars"]
    assert {"loss", "codes/routed/flips", "gradients/router", "routing/model.layers.1/load/3"} <= set(names)
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in lines(whole)})


def test_wandb_keeps_a_run_that_can_be_synced(whole):
    [file] = (whole / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"codes/routed/flips" in file.read_bytes()


# --- where to ------------------------------------------------------------------------------------------------------


def test_places_nobody_knows_and_packages_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match=r"tensorbord; did you mean tensorboard\?"):
        go(tmp_path / "a", log_to=("tensorbord",))
    with pytest.raises(RequestError, match=r"log_to is a list of names, not text: say \['tensorboard'\]"):
        go(tmp_path / "a", log_to="tensorboard")
    with pytest.raises(RequestError, match=r"needs a folder"):
        go(None, log_to=("tensorboard",))
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        go(tmp_path / "b", log_to=("wandb",))
    assert not list(tmp_path.iterdir()), "refused before anything happened"


def test_without_a_key_wandb_is_refused_before_anything_happens(tmp_path, monkeypatch):
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sinks, "has_key", lambda: False)
    with pytest.raises(RequestError, match=r"No API key configured\. Set WANDB_API_KEY, say `wandb login`, or .*line"):
        go(tmp_path / "a", log_to=("wandb",))
    assert not list(tmp_path.iterdir())
    # One that cannot be asked says so when the run is opened.
    monkeypatch.setattr(sinks, "has_key", lambda: True)

    def init(**settings):
        raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(RequestError, match=r"api_key not configured \(no-tty\)\. Set WANDB_API_KEY"):
        sinks.open_sinks(("wandb",), tmp_path, "2-train", [])


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_no_key_is_asked_for_where_none_is_needed(monkeypatch, tmp_path, mode):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", mode)
    sinks.check_sinks(("wandb",), tmp_path)


def test_a_key_is_asked_for_at_nobody_s_terminal():
    """By a process of its own: wandb remembers what it was told first."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    code = "from mote_quant.watching import sinks; print(sinks.has_key())"
    with tempfile.TemporaryDirectory() as home:
        where = {"HOME": home, "NETRC": f"{home}/netrc", "WANDB_CONFIG_DIR": home}
        done = subprocess.run([sys.executable, "-c", code], env=told | where, cwd=home, capture_output=True, text=True)
        (Path(home) / "netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
        again = subprocess.run([sys.executable, "-c", code], env=told | where, cwd=home, capture_output=True, text=True)
    assert (done.stdout, again.stdout) == ("False\n", "True\n"), done.stderr + again.stderr


def test_a_sink_that_fails_is_closed_and_the_training_goes_on(whole, tmp_path, monkeypatch, caplog):
    written, closed = [], []

    def write(self, entry):
        written.append(entry["step"])
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sinks.JsonLines, "write", write)
    monkeypatch.setattr(sinks.JsonLines, "close", lambda self: closed.append(len(written)))
    with caplog.at_level(logging.WARNING, logger="mote_quant"):
        go(tmp_path)
    assert sha256(tmp_path / "model.safetensors") == sha256(whole / "model.safetensors")
    assert (written, closed) == ([1, 2, 3], [3])
    [said] = [record.getMessage() for record in caplog.records if "figures" in record.getMessage()]
    assert said == "no more figures go to metrics.jsonl: OSError: [Errno 28] No space left on device"


def test_a_sink_that_cannot_be_opened_is_done_without(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    with caplog.at_level(logging.WARNING, logger="mote_quant"):
        [sink] = sinks.open_sinks((), tmp_path, "2-train", [])
        sink.write({"step": 1})
        sink.close()
    assert len(caplog.records) == 1


def test_lines_of_other_parts_and_of_a_torn_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"part": "1-train", "step": 1}\n{"part": "3-train", "step": 1}\n{"part')
    file = sinks.JsonLines(tmp_path, "3-train", [{"step": 5, "figures": {"a": 1}}])
    file.write({"step": 6})
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert found == [
        {"part": "1-train", "step": 1},
        {"part": "3-train", "step": 5, "a": 1},
        {"part": "3-train", "step": 6},
    ]
