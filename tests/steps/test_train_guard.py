"""The guard against loss spikes: what counts as one, what is undone, and that a kill anywhere changes nothing."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mote_quant import pipeline
from mote_quant.errors import ArtifactError, SaveError, SpikeError, TrainingError
from mote_quant.hf import integrity
from mote_quant.hf.guard import LossGuard, Rollback
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.report.tables import tables
from mote_quant.steps.train.callbacks import Distance
from tests import pico
from tests.mixtures import TERNARY, bits_of, same, train_it, upcycled
from tests.sources import source_for
from tests.stopping import StopError

guard_module = import_module("mote_quant.steps.train.guard")
loop_module = import_module("mote_quant.steps.train.loop")

PLAIN = MoteTrainer.compute_loss
JUDGE = guard_module.Watchman.on_pre_optimizer_step
REPORT: dict[str, Any] = {"bytes": {"roles": {}, "stored_bytes": 0}, "coverage": []}
STEPS = 12
GUARD: dict[str, Any] = {"factor": 3.0, "window": 3, "retries": 3, "cooling": 0.5}


def spiky(monkeypatch, spikes: dict[int, float], stop: int | None = None) -> list[int]:
    """Losses times a factor at some steps (each time they come); the steps that ran, in order. May stop before one."""
    ran: list[int] = []
    left = [stop]

    def compute_loss(self, *args, **kwargs):
        step = self.state.global_step
        ran.append(step)
        if step == left[0]:
            left[0] = None
            raise StopError
        return PLAIN(self, *args, **kwargs) * spikes.get(step, 1.0)

    monkeypatch.setattr(MoteTrainer, "compute_loss", compute_loss)
    return ran


def trained(folder: Path | None, guard: dict | None = GUARD, progress: Any = None, **settings) -> tuple[dict, dict]:
    """The weights after a training that is guarded, and its notes."""
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    context.folder, context.progress = folder, progress or context.progress
    told: list[dict] = []
    context.record = lambda event, **values: told.append({"event": event, **values})
    given = {"guard": guard} if guard else {}
    settings = {"steps": STEPS, "checkpoint_every": 2, "batch_size": 2, "learning_rate": 1e-2} | settings
    train_it(model, context, **settings, **given)
    context.notes["told"] = told
    return bits_of(model.state_dict()), context.notes


@pytest.mark.parametrize(
    ("step", "factor", "back_to"), [(7, 50.0, 6), (6, 50.0, 4), (7, math.nan, 6), (0, math.inf, 0)]
)
def test_a_spike_is_undone_and_its_step_left_out(monkeypatch, tmp_path, step, factor, back_to):
    ran = spiky(monkeypatch, {step: factor})
    _, notes = trained(tmp_path)
    [rollback] = notes["rollbacks"]
    assert (rollback["step"], rollback["back_to"], rollback["rate"]) == (step, back_to, 0.5)
    assert (rollback["loss"] is None) == (not math.isfinite(factor))
    assert ran == [*range(step + 1), *range(back_to, step), *range(step + 1, STEPS)]
    assert notes["told"] == [{"event": "rollback", **rollback}]
    assert math.isfinite(notes["curve"][-1]["loss"])
    json.dumps(notes, allow_nan=False)


def test_a_gradient_that_is_not_finite_is_a_spike(monkeypatch, tmp_path):
    """The loss says nothing of it; without a guard the weights would be NaN from here on."""

    def poison(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            for gradient in [p.grad for p in model.parameters() if p.grad is not None][:1]:
                gradient[0] = math.inf
        return JUDGE(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(guard_module.Watchman, "on_pre_optimizer_step", poison)
    weights, notes = trained(tmp_path)
    assert [(r["step"], r["loss"], r["back_to"]) for r in notes["rollbacks"]] == [(5, None, 4)]
    assert all(torch.isfinite(tensor).all() for tensor in weights.values() if tensor.is_floating_point())
    table = next(table for table in tables(REPORT | {"steps": [notes | {"step": "train"}]}) if "asked" in table[0])
    assert table[2] == [
        ["step 5", "a loss or gradient that is not finite: back to step 4, without that step's data, rates x 0.5"]
    ]


def test_nothing_of_a_spike_is_left(monkeypatch, tmp_path):
    spiky(monkeypatch, {7: math.nan})
    undone, _ = trained(tmp_path / "undone", GUARD | {"cooling": 1.0})
    (tmp_path / "warned").mkdir()
    row = {"step": 7, "loss": None, "usual": None, "back_to": 0, "rate": 1.0}
    (tmp_path / "warned" / "guard.json").write_text(json.dumps([row]))
    spiky(monkeypatch, {})
    warned, _ = trained(tmp_path / "warned", GUARD | {"cooling": 1.0})
    whole, notes = trained(tmp_path / "whole")
    assert same(undone, warned)
    assert not same(undone, whole)
    assert "rollbacks" not in notes


def test_a_guard_that_sees_no_spike_changes_nothing(tmp_path):
    assert same(trained(tmp_path)[0], trained(None, guard=None)[0])


def test_rates_are_lower_from_the_checkpoint_on(monkeypatch, tmp_path):
    rates: dict[int, float] = {}

    def note(self, args, state, control, **kwargs):
        rates[state.global_step] = kwargs["optimizer"].param_groups[0]["lr"]

    monkeypatch.setattr(guard_module.Watchman, "on_step_begin", note, raising=False)
    spiky(monkeypatch, {5: 50.0, 9: 50.0})
    trained(tmp_path, schedule="constant", warmup=0.0)
    assert [rates[step] for step in range(STEPS)] == [1e-2] * 4 + [5e-3] * 4 + [2.5e-3] * 4


def test_a_cooled_schedule_keeps_its_shape(monkeypatch, tmp_path):
    def rates() -> dict[int, float]:
        found: dict[int, float] = {}

        def note(self, args, state, control, **kwargs):
            found[state.global_step] = kwargs["optimizer"].param_groups[-1]["lr"]

        monkeypatch.setattr(guard_module.Watchman, "on_step_begin", note, raising=False)
        trained(tmp_path / str(len(list(tmp_path.iterdir()))), learning_rates={"router": 3e-3})
        return found

    whole = rates()
    spiky(monkeypatch, {5: 50.0})
    cooled = rates()
    assert [cooled[step] for step in range(4, STEPS)] == pytest.approx([whole[s] / 2 for s in range(4, STEPS)])


KILLS = {1: ["as bad checkpoints go", "before it is written down", "after it was written down", 9], 2: [5]}
LATER = [0, 1, 2, 3, 4, 6, 7, 8, 10, 11]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_kill_changes_nothing(monkeypatch, tmp_path, accumulation):
    check_kills(monkeypatch, tmp_path, KILLS[accumulation], accumulation)


@pytest.mark.slow
def test_a_kill_at_any_step_changes_nothing(monkeypatch, tmp_path):
    check_kills(monkeypatch, tmp_path, LATER, 1)


def check_kills(monkeypatch, tmp_path: Path, places: list, accumulation: int) -> None:
    """Guarded trainings with two spikes that are stopped at `places` and resumed end in the same bits."""
    spikes = {6: 50.0, 9: math.nan}
    settings = {"gradient_accumulation": accumulation, "learning_rates": {"router": 3e-3}}
    spiky(monkeypatch, spikes)
    whole, notes = trained(tmp_path / "whole", **settings)
    assert [(r["step"], r["back_to"]) for r in notes["rollbacks"]] == [(6, 4), (9, 8)]
    for index, where in enumerate(places):
        with monkeypatch.context() as patch:
            spiky(patch, spikes, stop=where if isinstance(where, int) else None)
            stop_at(patch, where)
            with pytest.raises(StopError):
                trained(tmp_path / str(index), **settings)
        spiky(monkeypatch, spikes)
        resumed, told = trained(tmp_path / str(index), **settings)
        assert same(resumed, whole), where
        assert told["rollbacks"] == notes["rollbacks"], where
        assert told["tokens"] == notes["tokens"], where


def stop_at(patch, where: str | int) -> None:
    """Stop inside a rollback."""

    def stop(*args, **kwargs):
        raise StopError

    if where == "as bad checkpoints go":
        patch.setattr(guard_module.shutil, "rmtree", stop)
    if where == "before it is written down":
        patch.setattr(guard_module, "keep", stop)
    if where == "after it was written down":
        plain = loop_module.roll_back
        patch.setattr(loop_module, "roll_back", lambda *args: stop(plain(*args)))


def test_it_gives_up_after_some_retries_and_keeps_the_last_good_checkpoint(monkeypatch, tmp_path):
    spiky(monkeypatch, {7: math.nan, 8: math.nan, 9: math.nan})
    with pytest.raises(
        TrainingError, match=r"the loss is nan after step 9; .* is the median .*, and 2 rollbacks did not"
    ):
        trained(tmp_path, GUARD | {"retries": 2})
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-6", "checkpoint-8"]


def test_journal_and_report_say_what_happened(monkeypatch, tmp_path):
    spiky(monkeypatch, {3: math.nan})
    train = {"what": ["routed", "router"], "data": "pico", "steps": 5, "batch_size": 2, "checkpoint_every": 2}
    made = {"name": "g", "bits": TERNARY, "pipeline": [{"upcycle": {}}, {"train": train | {"guard": GUARD}}]}
    model = pico.PICO["llama"]()
    pipeline.apply(made, model, data=source_for(model), output=tmp_path / "out")
    run = tmp_path / "out" / "run"
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    [told] = [event for event in events if event["event"] == "rollback"]
    assert (told["step"], told["back_to"], told["rate"]) == (3, 2, 0.5)
    assert "back to step 2, without that step's data" in (run / "report.md").read_text()
    assert [*run.glob("steps/*/*")] == []


def test_progress_shows_the_loss_of_its_step_and_says_what_is_done_again(monkeypatch, tmp_path):
    spiky(monkeypatch, {7: math.nan})
    titles, shown = [], {}

    class Heard:
        def start(self, title, total):
            titles.append(title)

        def advance(self, done, **figures):
            shown[done] = figures

    _, notes = trained(tmp_path, progress=Heard())
    assert titles == ["training", "training again from step 6"]
    assert {step: figures["loss"] for step, figures in shown.items()} == {p["step"]: p["loss"] for p in notes["curve"]}
    assert list(shown) == [*range(1, STEPS + 1)]
    assert "tokens/s" in shown[2]


def test_a_step_that_is_left_out_is_not_drawn_as_a_perfect_student():
    means = iter([9.0, 0.3, 0.0, 0.2])
    distance = Distance(SimpleNamespace(mean=lambda: next(means)))
    state = SimpleNamespace(log_history=[])
    distance.on_train_begin(None, state, None)
    for step in range(3):
        state.log_history.append({"step": step, "loss": 1.0})
        distance.on_log(None, state, None, logs={"loss": 1.0})
    assert [entry["kl"] for entry in state.log_history] == [0.3, 0.3, 0.2]


def test_without_a_folder_it_goes_back_too(monkeypatch):
    spiky(monkeypatch, {7: math.nan})
    assert [r["back_to"] for r in trained(None)[1]["rollbacks"]] == [6]


def test_a_record_that_cannot_be_read_or_written(monkeypatch, tmp_path):
    (tmp_path / "guard.json").write_text("[{]")
    with pytest.raises(ArtifactError, match=r"guard\.json cannot be read .* delete the folder"):
        trained(tmp_path)

    def full(path, text):
        raise OSError(28, "No space left on device")

    spiky(monkeypatch, {3: math.nan})
    monkeypatch.setattr(integrity, "write_atomic", full)
    with pytest.raises(SaveError, match="No space left on device; free space and re-run"):
        trained(tmp_path / "full")


def test_what_a_guard_calls_a_spike():
    guard = LossGuard(2.0, 3)
    for step, loss in enumerate((1.0, 9.0, 2.0)):
        guard.add(loss / 2)
        guard.add(loss / 2)
        guard.judge(step)
    assert guard.usual == 2.0
    guard.add(4.0)
    guard.judge(3)
    assert guard.usual == 4.0
    guard.add(8.1)
    with pytest.raises(
        SpikeError, match=r"the loss is 8\.1 after step 4; 4 is the median of the last 3 losses, guard\.factor 2$"
    ) as caught:
        guard.judge(4)
    assert (caught.value.step, caught.value.loss, caught.value.usual) == (4, 8.1, 4.0)
    again = LossGuard(2.0, 3, [Rollback(4, 8.1, 4.0, 2, 0.5)])
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert (again.usual, again.rate, again.skips(4), again.skips(3)) == (4.0, 0.5, True, False)
