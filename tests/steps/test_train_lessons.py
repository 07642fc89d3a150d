"""Lessons on disk and hidden states: what is learned from them is what a live teacher teaches."""

from __future__ import annotations

import logging
import os
import time
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mote_quant import admission, pipeline
from mote_quant.errors import ArtifactError, ModelError, RecipeError, SaveError
from mote_quant.hf.distillation import LiveTeacher
from mote_quant.hf.lesson import likeliest, state_distances, summed_divergence, summed_divergence_of_words
from mote_quant.hf.lesson_store import LessonStore, row_keys
from mote_quant.recipe import load
from tests import pico
from tests.mixtures import TERNARY, bits_of, same, train_it, upcycled
from tests.sources import source_for

teaching = import_module("mote_quant.steps.train.teaching")
store_module = import_module("mote_quant.hf.lesson_store")


def trained(family: str = "llama", samples: int = 24, **distill) -> tuple[dict[str, Tensor], dict]:
    model = pico.PICO[family]()
    context = upcycled(model, TERNARY)
    source = source_for(model, samples=samples)
    context.open_data = lambda name, length: source
    train_it(model, context, steps=3, batch_size=4, gradient_accumulation=2, warmup=0.0, distill=distill)
    return bits_of(model.state_dict()), context.notes


def without_teachers(monkeypatch) -> None:
    """From now on no teacher can be loaded."""

    def refuse(*args, **kwargs):
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(teaching, "open_teacher", refuse)
    monkeypatch.setattr("mote_quant.hf.teacher.load_model", refuse)


@pytest.mark.parametrize("kind", ["teacher", "mixed"])
@pytest.mark.parametrize("hidden", [0.0, 0.3])
def test_a_cache_teaches_what_its_teacher_does(kind, hidden, request, tmp_path, monkeypatch):
    settings = {"teacher": request.getfixturevalue(kind), "weight": 0.7, "temperature": 2.0, "hidden": hidden}
    live, notes = trained(**settings)
    first, _ = trained(**settings, cache=str(tmp_path))
    without_teachers(monkeypatch)
    again, told = trained(**settings, cache=str(tmp_path))
    # 24 samples, each seen once, in the batches in which the teacher was asked about them: the same bits.
    assert same(live, first)
    assert same(live, again)
    assert told["curve"] == notes["curve"]


@pytest.mark.parametrize("family", ["gpt2", "llava", "qwen2_5_vl"])
def test_other_families_rows_in_other_batches_and_more_than_one_epoch(family, tmp_path, monkeypatch):
    settings = {"teacher": pico.saved(tmp_path / "teacher", family, seed=9), "weight": 1.0, "hidden": 0.2}
    live, notes = trained(family, samples=6, **settings)
    trained(family, samples=6, **settings, cache=str(tmp_path / "cache"))
    without_teachers(monkeypatch)
    again, told = trained(family, samples=6, **settings, cache=str(tmp_path / "cache"))
    for name, tensor in live.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-5)
    assert told["distillation"]["kl"] == pytest.approx(notes["distillation"]["kl"], rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_likeliest_words_and_the_others_as_one(temperature):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(6, 11, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    p, q = ((logits / temperature).softmax(-1) for logits in (teacher, student))
    best = p.argsort(-1, descending=True)[:, :4]
    shares = [torch.cat([x.gather(-1, best), 1 - x.gather(-1, best).sum(-1, keepdim=True)], -1) for x in (p, q)]
    expected = (shares[0] * (shares[0] / shares[1]).log()).sum()
    found = summed_divergence_of_words(student, likeliest(teacher, 4, temperature), temperature)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    whole = summed_divergence(student, teacher, temperature)
    for k in (11, 50):
        student.requires_grad_()
        exact = summed_divergence_of_words(student, likeliest(teacher, k, temperature), temperature)
        assert float(exact.detach()) == pytest.approx(float(whole), rel=1e-5)
        assert torch.isfinite(torch.autograd.grad(exact, student)[0]).all()
        student = student.detach()
    assert float(found) < float(whole)


def test_top_k_of_all_words_is_the_whole_distribution(teacher, tmp_path):
    live, _ = trained(teacher=teacher, weight=1.0)
    kept, _ = trained(teacher=teacher, weight=1.0, cache=str(tmp_path), top_k=10_000)
    for name, tensor in live.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=1e-5)
    few, _ = trained(teacher=teacher, weight=1.0, cache=str(tmp_path), top_k=2)
    assert not same(few, kept)
    assert len([*tmp_path.glob("*/identity.json")]) == 2


@pytest.mark.parametrize("top_k", [None, 5])
def test_the_bytes_are_predicted(teacher, tmp_path, caplog, top_k):
    with caplog.at_level(logging.INFO):
        trained(teacher=teacher, cache=str(tmp_path), hidden=1.0, **({"top_k": top_k} if top_k else {}))
    [said] = [record for record in caplog.records if "the teacher is asked about" in record.message]
    rows, tokens, each = said.args[:3]
    shards = [*tmp_path.glob("*/lessons-*.safetensors")]
    written = sum(path.stat().st_size for path in shards)
    assert (rows, tokens) == (24, 24 * 9)
    assert 0 <= written - each * tokens < 40_000, "headers only"


def test_hidden_states_pull_the_student_to_its_teacher(teacher):
    def gap(weights: dict[str, Tensor]) -> float:
        model = pico.PICO["llama"]()
        upcycled(model, TERNARY)
        model.load_state_dict(weights)
        teacher = LiveTeacher(pico.PICO["llama"](seed=9).eval(), states=True)
        batch = pico.inputs(model, batch=8)
        mine, theirs = (each.teach(batch).states for each in (LiveTeacher(model.eval(), True), teacher))
        return float(state_distances(mine, theirs).mean())

    def run(hidden: float) -> float:
        model = pico.PICO["llama"]()
        context = upcycled(model, TERNARY)
        train_it(
            model,
            context,
            what=["routed", "router", "shared", "attention", "embedding"],
            steps=30,
            batch_size=8,
            learning_rate=1e-2,
            distill={"teacher": teacher, "weight": 0.0, "hidden": hidden},
        )
        return gap(model.state_dict())

    assert run(5.0) < 0.9 * run(0.0)


def test_the_distance_of_states_weighs_layers_and_positions_alike():
    one, two = torch.randn(5, 4), torch.randn(5, 4)
    far = (one * 3, two * torch.tensor([[300.0], [1e-2], [1.0], [7.0], [2.0]]))
    assert state_distances((torch.zeros(5, 4),) * 2, far).tolist() == pytest.approx([1.0] * 5)
    assert state_distances(far, far).tolist() == [0.0] * 5
    assert state_distances((one * 3, two * 0), far).tolist() == pytest.approx([0.5] * 5)


@pytest.mark.parametrize("shape", [{"layers": 3}, {"hidden": 64}])
def test_a_teacher_of_another_shape_shows_no_states(shape, tmp_path):
    teacher = pico.saved(tmp_path / "other", **shape)
    with pytest.raises(ModelError, match=r"distill\.hidden: .* has (3|2) decoder layers of width (32|64)"):
        trained(teacher=teacher, hidden=0.1)
    trained(teacher=teacher)


def test_hidden_and_compile_do_not_go_together():
    train = {
        "what": ["attention"],
        "data": "x",
        "steps": 1,
        "compile": True,
        "distill": {"teacher": "t", "hidden": 1.0},
    }
    with pytest.raises(RecipeError, match="hidden"):
        load({"name": "c", "pipeline": [{"train": train}]})


def test_one_that_was_killed_goes_on(teacher, tmp_path, monkeypatch):
    asked: list[int] = []
    plain = LiveTeacher.teach

    def teach(self, inputs):
        asked.append(len(inputs["input_ids"]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return plain(self, inputs)

    monkeypatch.setattr(store_module, "_SHARD_BYTES", 1)
    monkeypatch.setattr(LiveTeacher, "teach", teach)
    with pytest.raises(KeyboardInterrupt):
        trained(teacher=teacher, cache=str(tmp_path))
    folder = next(tmp_path.glob("*/identity.json")).parent
    part, live = folder / ".lessons-x.safetensors.part", folder / ".lessons-y.safetensors.1.part"
    for path in (part, live):
        path.write_text("half")
    os.utime(part, (time.time() - 2 * 24 * 3600,) * 2)
    trained(teacher=teacher, cache=str(tmp_path))
    assert asked == [4] * 7, "three batches before, three after, and the one in which it died"
    assert (part.exists(), live.exists()) == (False, True), "what another run may be writing is left alone"


def test_two_runs_may_write_the_same_lessons(tmp_path, monkeypatch):
    plain, stores = store_module.save_file, [LessonStore(tmp_path, {"a": 1}) for _ in range(2)]
    for store in stores:
        store.add("key", {"logits": torch.ones(2)})

    def save(tensors, path, metadata):
        plain(tensors, path, metadata)
        if stores[1]._waiting:
            monkeypatch.setattr(store_module, "save_file", plain)
            LessonStore(tmp_path, {"a": 1}).tidy()
            stores[1].flush()

    monkeypatch.setattr(store_module, "save_file", save)
    stores[0].flush()
    assert all(torch.equal(store.read("key")["logits"], torch.ones(2)) for store in stores)
    assert not [*tmp_path.glob("*/*.part")]


def test_a_damaged_shard_is_made_again_and_an_altered_one_is_refused(teacher, tmp_path, caplog, monkeypatch):
    whole, _ = trained(teacher=teacher, cache=str(tmp_path))
    [shard] = tmp_path.glob("*/lessons-*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert same(trained(teacher=teacher, cache=str(tmp_path))[0], whole)
    assert "cannot be read" in caplog.text
    assert shard.read_bytes() == content
    shard.write_bytes(content[:-4] + bytes(4))
    without_teachers(monkeypatch)
    with pytest.raises(ArtifactError, match="was altered after it was written; delete it"):
        trained(teacher=teacher, cache=str(tmp_path))
    (shard.parent / "identity.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not what this cache was made with; delete"):
        trained(teacher=teacher, cache=str(tmp_path))


def test_another_teacher_has_another_place(teacher, mixed, tmp_path):
    alone, _ = trained(teacher=mixed)
    trained(teacher=teacher, cache=str(tmp_path))
    assert same(trained(teacher=mixed, cache=str(tmp_path))[0], alone)
    assert len([*tmp_path.glob("*/identity.json")]) == 2


def test_a_full_disk(teacher, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "save_file", full)
        with pytest.raises(SaveError, match="No space left on device; what is there is kept"):
            trained(teacher=teacher, cache=str(tmp_path / "a"))
    with monkeypatch.context() as patch:
        patch.setattr(store_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        with pytest.raises(SaveError, match=r"bytes of lessons, and 1 are free: set distill\.top_k"):
            trained(teacher=teacher, cache=str(tmp_path / "b"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"teachers\.json could not be written|cannot be used as a cache"):
        trained(teacher=teacher, cache=str(tmp_path / "file"))


def test_a_row_s_key_is_its_own(tmp_path):
    model = pico.PICO["llama"]()
    batch = pico.inputs(model, batch=3)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    keys = row_keys(batch)
    assert len(set(keys)) == 3
    padded = {name: torch.cat([tensor, torch.full_like(tensor[:, :2], 0)], 1) for name, tensor in batch.items()}
    assert row_keys({name: tensor.flip(0) for name, tensor in padded.items()}) == keys[::-1]
    batch["labels"][1, 4] = -100
    assert [a == b for a, b in zip(row_keys(batch), keys, strict=True)] == [True, False, True]
    with pytest.raises(ArtifactError, match="no lesson for a row"):
        LessonStore(tmp_path, {"a": 1}).read(keys[0])


def test_a_run_whose_cache_is_whole_never_loads_its_teacher(teacher, tmp_path, monkeypatch):
    train = {"what": ["routed", "router"], "data": "pico", "steps": 2, "batch_size": 4}
    train |= {"distill": {"teacher": teacher, "cache": str(tmp_path / "cache")}}
    made = {"name": "r", "bits": TERNARY, "pipeline": [{"upcycle": {}}, {"train": train}]}

    def go() -> dict[str, Tensor]:
        model = pico.PICO["llama"]()
        return bits_of(pipeline.apply(made, model, data=source_for(model)).state_dict())

    first = go()
    without_teachers(monkeypatch)
    monkeypatch.setattr(admission, "open_teacher", teaching.open_teacher)
    assert same(go(), first)
