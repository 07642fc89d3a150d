"""Distillation: what the loss is, what it does, what stays as it was, and what is refused."""

from __future__ import annotations

import copy
import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mote_quant import pipeline
from mote_quant.errors import ArtifactError, FingerprintError, ModelError, RecipeError
from mote_quant.hf.distillation import Distillation, LiveTeacher, summed_divergence
from mote_quant.hf.integrity import sha256
from mote_quant.hf.loading import load_model
from mote_quant.hf.teacher import open_teacher
from mote_quant.recipe import load
from mote_quant.steps.train.callbacks import Watch
from tests import pico
from tests.killing import Bomb
from tests.mixtures import (
    TERNARY,
    bits_of,
    context_for,
    mixture,
    recipe,
    train_it,
    upcycled,
)
from tests.routers import gradient_of_router
from tests.sources import source_for
from tests.stopping import Stop, StopError

train_module = import_module("mote_quant.steps.train.run")
teaching_module = import_module("mote_quant.steps.train.teaching")

OFF = {"balance_loss": 0.0, "z_loss": 0.0, "warmup": 0.0}


def divergence_by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """KL(teacher || student) summed over the rows, number by number in Python floats."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        weights = [[math.exp(logit / temperature) for logit in row] for row in (s, t)]
        q, p = ([w / sum(row) for w in row] for row in weights)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_is_that_of_the_textbook(temperature):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    found = summed_divergence(student, teacher, temperature)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(divergence_by_hand(student, teacher, temperature), rel=1e-5)
    assert float(summed_divergence(teacher, teacher, temperature)) == 0.0


@torch.no_grad()
def test_the_loss_mixes_both_over_labelled_positions_only(teacher):
    taught, model = open_teacher(teacher, pico.PICO["llama"]()), pico.PICO["llama"]()
    batch = pico.inputs(model, batch=3)
    batch["labels"][:, :5] = -100
    batch["labels"][0, 7] = -100
    mine, theirs = (m(**{k: v for k, v in batch.items() if k != "labels"}).logits for m in (model, taught))
    by_hand, rows = 0.0, 0
    for sample in range(3):
        for place in range(1, 9):
            if int(batch["labels"][sample, place]) != -100:
                by_hand += divergence_by_hand(mine[sample, place - 1, None], theirs[sample, place - 1, None], 2.0)
                rows += 1
    task = torch.tensor(2.0)
    made = Distillation(LiveTeacher(taught), 0.25, 2.0)
    assert float(made.loss(task, mine, batch, None)) == pytest.approx(1.5 + 0.25 * 4 * by_hand / rows, rel=1e-4)
    assert float(made.loss(task, mine, batch, 40)) == pytest.approx(1.5 + 0.25 * 4 * by_hand / 40, rel=1e-4)
    assert made.mean() == pytest.approx(by_hand / rows, rel=1e-4)
    assert made.mean() == 0.0, "asked again without a batch in between"


@torch.no_grad()
def test_a_batch_without_labels_teaches_nothing(teacher):
    model = pico.PICO["llama"]()
    batch = pico.inputs(model)
    batch["labels"][:] = -100
    made = Distillation(LiveTeacher(open_teacher(teacher, model)), 0.5, 1.0)
    assert float(made.loss(torch.tensor(3.0), model(batch["input_ids"]).logits, batch, None)) == 1.5


def first_loss(family: str, folder: Path, **distill) -> float:
    """The first loss of a dense model that is taught by itself."""
    name = pico.saved(folder, family, seed=0)
    model = pico.PICO[family]()
    context = context_for(recipe(), model)
    train_it(model, context, what=["*"], steps=1, distill={"teacher": name, **distill}, **OFF)
    assert context.notes["distillation"]["kl"] == pytest.approx(0.0, abs=1e-6)
    return context.notes["curve"][0]["loss"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava", "qwen2_5_vl"])
def test_taught_by_itself_there_is_nothing_to_learn(family, tmp_path):
    assert first_loss(family, tmp_path / "whole", weight=1.0, temperature=2.0) == pytest.approx(0.0, abs=1e-5)
    half, none = (first_loss(family, tmp_path / str(w), weight=w) for w in (0.5, 0.0))
    assert half == pytest.approx(none / 2, rel=1e-5)
    assert none > 1.0


def test_a_weight_of_zero_measures_the_distance_and_changes_nothing(teacher):
    found = []
    for distill in ({}, {"distill": {"teacher": teacher, "weight": 0.0}}):
        model = pico.PICO["llama"]()
        context = upcycled(model, TERNARY)
        train_it(model, context, steps=3, **distill)
        found.append(bits_of(model.state_dict()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert context.notes["distillation"]["kl"] > 0.01


@torch.no_grad()
def distance(model, taught) -> float:
    """Mean KL(taught || model) on batches that nobody was trained on."""
    rows = [pico.inputs(model, batch=8, seed=seed)["input_ids"] for seed in (1001, 1002)]
    pairs = [(m.logits.flatten(0, 1), t.logits.flatten(0, 1)) for m, t in ((model(r), taught(r)) for r in rows)]
    return sum(float(summed_divergence(mine, theirs)) for mine, theirs in pairs) / (2 * 8 * 9)


def trained_towards(folder: str, **settings) -> tuple[float, float, dict]:
    """How far a mixture is from the model in `folder` before and after training, and the notes."""
    model, taught = pico.PICO["llama"](), open_teacher(folder, pico.PICO["llama"]())
    context = upcycled(model, TERNARY)
    before = distance(model, taught)
    train_it(model, context, what=["*"], steps=30, batch_size=8, learning_rate=1e-2, **OFF, **settings)
    return before, distance(model, taught), context.notes


@pytest.mark.parametrize("kind", ["teacher", "packed"])
def test_it_brings_the_student_closer_to_its_teacher_than_training_alone(kind, request):
    folder = request.getfixturevalue(kind)
    before, alone, _ = trained_towards(folder)
    _, taught, notes = trained_towards(folder, distill={"teacher": folder, "weight": 0.9})
    assert taught < 0.9 * before
    assert taught < 0.9 * alone
    curve = notes["curve"]
    assert curve[-1]["kl"] < 0.8 * curve[0]["kl"]
    said = {"teacher": folder, "weight": 0.9, "temperature": 1.0, "hidden": 0.0, "cache": None, "top_k": None}
    assert notes["distillation"] == {**said, "kl": curve[-1]["kl"]}


def test_accumulation_gives_the_distillation_the_same_gradient(monkeypatch, teacher):
    settings = OFF | {"distill": {"teacher": teacher, "weight": 1.0, "temperature": 2.0}}
    once, many = (
        gradient_of_router(monkeypatch, **settings, batch_size=4 // n, gradient_accumulation=n) for n in (1, 4)
    )
    assert once.norm() > 1e-4
    torch.testing.assert_close(many, once, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", ["balance_loss", "z_loss"])
def test_router_losses_keep_their_strength(monkeypatch, teacher, loss):
    def share(**settings) -> Tensor:
        with_it = gradient_of_router(monkeypatch, **OFF | {loss: 1.0}, **settings)
        return with_it - gradient_of_router(monkeypatch, **OFF, **settings)

    once = share(batch_size=2)
    assert once.norm() > 1e-3
    for weight in (0.5, 1.0):
        mixed = share(batch_size=1, gradient_accumulation=2, distill={"teacher": teacher, "weight": weight})
        torch.testing.assert_close(mixed, once, rtol=1e-3, atol=1e-5)


def test_the_loss_of_a_model_s_own_routers_keeps_its_strength(monkeypatch, tmp_path):
    """A teacher adds nothing to what `balance_loss` does, and takes nothing from it."""
    found: dict[tuple, Tensor] = {}
    pico.NATIVE_MOE["mixtral"](seed=9).save_pretrained(tmp_path)

    class Spy(Watch):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            found[key] = model.get_parameter("model.layers.0.mlp.gate.weight").grad.clone()

    monkeypatch.setattr(train_module, "Watch", Spy)
    for key in [(weight, balance) for weight in (None, 0.5, 1.0) for balance in (0.0, 0.5)]:
        model = pico.NATIVE_MOE["mixtral"]()
        distill = {} if key[0] is None else {"distill": {"teacher": str(tmp_path), "weight": key[0]}}
        settings = OFF | {"what": ["router"], "steps": 1, "max_grad_norm": 1e9, "balance_loss": key[1]}
        settings |= {"data": "pico", "batch_size": 2, "gradient_accumulation": 2}
        pipeline.apply({"name": "x", "pipeline": [{"train": settings | distill}]}, model, data=source_for(model))
    plain, *mixed = (found[weight, 0.5] - found[weight, 0.0] for weight in (None, 0.5, 1.0))
    assert plain.norm() > 1e-4
    for share in mixed:
        torch.testing.assert_close(share, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("items", [0, None])
def test_a_step_without_labels_is_finite(teacher, items):
    model = pico.PICO["llama"]()
    batch = pico.inputs(model)
    batch["labels"][:] = -100
    made = Distillation(LiveTeacher(open_teacher(teacher, model), states=True), 0.5, 1.0, hidden=1.0)
    with made.watching(model) as states:
        outputs = model(**batch, num_items_in_batch=items)
    assert not outputs.loss.isfinite()
    loss = made.loss(outputs.loss, outputs.logits, batch, None if items is None else torch.tensor(items), states)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("hidden", [0.0, 2.0])
@torch.no_grad()
def test_a_batch_is_the_sum_of_its_rows(teacher, hidden):
    """Whatever it is split into, with labels and padding unevenly spread."""
    model = pico.PICO["llama"]()
    made = Distillation(LiveTeacher(open_teacher(teacher, model), bool(hidden)), 0.5, 1.0, hidden)
    batch = pico.inputs(model, batch=4)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, 6:] = 0
    batch["labels"][0, 6:] = -100
    batch["labels"][1, :7] = -100
    items = torch.tensor(int((batch["labels"][:, 1:] != -100).sum()))

    def loss(part: dict[str, Tensor]) -> float:
        with made.watching(model) as states:
            outputs = model(**part, num_items_in_batch=items)
        return float(made.loss(outputs.loss, outputs.logits, part, items, states))

    rows = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(4)]
    assert sum(map(loss, rows)) == pytest.approx(loss(batch), rel=1e-5)


def test_the_teacher_is_neither_trained_nor_in_training_mode(teacher, monkeypatch):
    seen = []

    class Spy(Distillation):
        def loss(self, *given):
            model = self._teacher._model
            seen.append((model, bits_of(model.state_dict())))
            return super().loss(*given)

    monkeypatch.setattr(teaching_module, "Distillation", Spy)
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context, steps=3, distill={"teacher": teacher}, **OFF)
    taught, first = seen[0]
    assert not any(module.training for module in taught.modules())
    assert not any(parameter.requires_grad for parameter in taught.parameters())
    assert all(torch.equal(tensor, first[name]) for name, tensor in taught.state_dict().items())


# --- runs ----------------------------------------------------------------------------------------------------------


def made(teacher: str, **settings) -> dict:
    train = {"what": ["routed", "router"], "data": "pico", "steps": 6, "batch_size": 2, "checkpoint_every": 2}
    distill = {"teacher": teacher, "weight": 0.7, "temperature": 2.0}
    steps = [{"upcycle": {"noise": 0.1}}, {"train": train | {"distill": distill} | settings}, {"quantize": {}}]
    return {"name": "taught", "bits": TERNARY, "pipeline": steps}


def go(folder: Path, teacher: str, progress: Bomb | None = None, **settings):
    model = pico.PICO["llama"]()
    options = pipeline.Options(progress or Bomb())
    return pipeline.apply(made(teacher, **settings), model, data=source_for(model), output=folder, options=options)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, packed):
    accumulated = {"gradient_accumulation": 2, "ternary_ramp": 0.5}
    go(tmp_path / "whole", packed, **accumulated)
    with pytest.raises(StopError):
        go(tmp_path / "stopped", packed, Stop("training", 5), **accumulated)
    assert list((tmp_path / "stopped/run/steps").glob("*/checkpoint-4"))
    go(tmp_path / "stopped", packed, **accumulated)
    whole, stopped = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert sha256(whole) == sha256(stopped)


def test_the_report_says_how_far_the_student_stayed(tmp_path, teacher):
    go(tmp_path, teacher)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "KL to the teacher" in report


def test_another_teacher_in_the_same_place_is_refused(tmp_path):
    folder = pico.saved(tmp_path / "teacher", seed=9)
    with pytest.raises(StopError):
        go(tmp_path / "out", folder, Stop("training", 3))
    pico.saved(tmp_path / "teacher", seed=8)
    with pytest.raises(FingerprintError, match=r"teacher\.\S*/teacher was \w{12}\.\.\., is now"):
        go(tmp_path / "out", folder)


def test_a_run_without_a_teacher_has_none_in_its_fingerprint(tmp_path):
    model = pico.PICO["llama"]()
    plain = made("x")
    del plain["pipeline"][1]["train"]["distill"]
    pipeline.apply(plain, model, data=source_for(model), output=tmp_path)
    assert '"teacher"' not in (tmp_path / "run" / "fingerprint.json").read_text()


class Deaf(Bomb):
    """A run that must not begin."""

    def start(self, title: str, total: int) -> None:
        raise AssertionError(f"{title} began")


BAD = {
    "missing": (lambda folder: None, ModelError, r"distill\.teacher: .*none could not be loaded"),
    "empty": (lambda folder: folder.mkdir(), ModelError, r"distill\.teacher: .*holds no config\.json"),
    "vocabulary": (
        lambda folder: pico.saved(folder, vocab_size=90),
        ModelError,
        r"distill\.teacher: .*none predicts 90 tokens, .* 96: take a teacher with the same vocabulary",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_teacher_is_refused_before_anything_happens(tmp_path, kind):
    make, error, words = BAD[kind]
    make(tmp_path / "none")
    with pytest.raises(error, match=words):
        go(tmp_path / "out", str(tmp_path / "none"), Deaf())
    assert not (tmp_path / "out").exists()


def test_a_teacher_with_a_damaged_file(tmp_path):
    name = pico.saved(tmp_path / "teacher")
    path = tmp_path / "teacher" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"distill\.teacher: .*copy or download it again"):
        open_teacher(name, pico.PICO["llama"]())


def test_a_teacher_that_sees_nothing(teacher):
    with pytest.raises(ModelError, match="sees no images"):
        open_teacher(teacher, pico.PICO["llava"]())


def test_a_teacher_with_another_tokenizer(tmp_path):
    from mote_quant.data.stdlib_text.processor import build_processor

    ours = build_processor()
    theirs = copy.deepcopy(ours)
    theirs.add_tokens(["<entirely-new>"])
    name = pico.saved(tmp_path)
    ours.save_pretrained(tmp_path)
    student = pico.PICO["llama"](seed=1)
    assert open_teacher(name, student, ours) is not None
    with pytest.raises(ModelError, match=r"the tokenizer of .* is not that of the model"):
        open_teacher(name, student, theirs)


def test_a_latent_teacher_is_taken_too(tmp_path):
    model = mixture(TERNARY)
    model.save_pretrained(tmp_path)
    assert distance(load_model(tmp_path), open_teacher(str(tmp_path), model)) == pytest.approx(0.0, abs=1e-6)


# --- the recipe ----------------------------------------------------------------------------------------------------


def problem(settings: list[str], **distill) -> str:
    values = made("t")
    values["pipeline"][1]["train"]["distill"] = {"teacher": "t", **distill}
    with pytest.raises(RecipeError) as caught:
        load(values, settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"temprature": 2.0}, "unknown key; did you mean temperature?"),
        ({"alpha": 0.5}, "unknown key; did you mean weight?"),
        ({"samples": 5}, "the keys here are teacher, weight, temperature"),
        ({"weight": 1.5}, "must be at most 1, not 1.5"),
        ({"temperature": 0.0}, "must be more than 0, not 0"),
        ({"teacher": ""}, "must not be empty"),
    ],
)
def test_slips_in_a_distillation_are_explained(distill, words):
    found = problem([], **distill)
    assert "pipeline[1].train.distill." in found
    assert words in found


def test_a_distillation_can_be_set_from_outside():
    values = made("t")
    del values["pipeline"][1]["train"]["distill"]
    loaded = load(values, ["pipeline.1.train.distill.teacher=runs/dense", "pipeline[1].train.distill.weight=0.25"])
    distill = loaded.pipeline[1].config.distill
    assert (distill.teacher, distill.weight, distill.temperature) == ("runs/dense", 0.25, 1.0)
    assert "unknown key; did you mean weight?" in problem(["pipeline[1].train.distill.wieght=0.25"])
