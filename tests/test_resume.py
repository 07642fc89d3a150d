"""kill -9 at any point, then the same command: the same bytes. And what is refused, by name."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from mote_quant import pipeline
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import ArtifactError, FingerprintError, SaveError, TrainingError
from mote_quant.hf.integrity import sha256
from mote_quant.journal import Run
from tests import pico
from tests.killing import Bomb, settled
from tests.mixtures import INT4_SHARED, TERNARY, bits_of, logits
from tests.playing import played
from tests.sources import source_for
from tests.stopping import Stop, StopError

KILLS = {
    "whole": [],
    "first training step": [{"progress": {"title": "training", "at": 1}}],
    "between checkpoints": [{"progress": {"title": "training", "at": 5, "nth": 2}}],
    "last training step, then in the next run too": [
        {"progress": {"title": "training", "at": 12, "nth": 2}},
        {"progress": {"title": "quantizing", "at": 3}},
    ],
    "up-cycling": [{"progress": {"title": "up-cycling", "at": 1}}],
    "before a state is kept": [{"owner": "Run", "call": "save_state", "nth": 1}],
    "as the run dies again and again": [
        {"progress": {"title": "training", "at": at, "nth": 1 if index else 2}} for index, at in enumerate((3, 9))
    ],
    "before the model is saved": [{"owner": "pipeline", "call": "save_model", "nth": 1}],
    "half a report": [{"writing": "report.json"}],
    "before it is said to be done": [{"writing": "done.json"}],
    "as it clears up": [{"owner": "Run", "call": "drop_steps", "nth": 3}],
}
# Every file of a run gets its name by os.replace, every folder is dropped by rmtree: die before each of them in turn.
RENAMES = {f"rename {nth}": [{"owner": "os", "call": "replace", "nth": nth}] for nth in range(1, 27)}
REMOVALS = {f"removal {nth}": [{"owner": "shutil", "call": "rmtree", "nth": nth}] for nth in range(1, 25)}
FEW = {name: bombs for name, bombs in (RENAMES | REMOVALS).items() if int(name.split()[1]) in (6, 18)}
SOON = {f"random {n}": [{"sleep": random.Random(n).uniform(0.05, 1.5)}] for n in range(2)}
LATER = {f"random {n}": [{"sleep": random.Random(n).uniform(0.01, 1.8)}] for n in range(4, 44)}


def play(work: Path, scenarios: dict, mode: str = "whole") -> dict:
    answers = played("tests.killing", work, scenarios, mode)
    assert all(answer["statuses"][-1] == 0 for answer in answers.values())
    return answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    return play(tmp_path_factory.mktemp("kills"), KILLS | FEW | SOON)


@pytest.mark.parametrize("name", [name for name in KILLS | FEW | SOON if name != "whole"])
def test_a_killed_run_ends_in_the_same_bytes(answers, name):
    whole, killed = answers["whole"], answers[name]
    if "random" not in name:
        assert set(killed["statuses"][:-1]) == {-9}, "the bomb did not go off"
    assert killed["files"] == whole["files"]
    assert killed["left"] == whole["left"] == []
    assert killed["curve"] == whole["curve"]


@pytest.mark.slow
def test_killed_before_every_rename_and_removal_and_at_forty_random_moments(tmp_path):
    answers = play(tmp_path, {"whole": []} | RENAMES | REMOVALS | LATER)
    assert {name for name, answer in answers.items() if answer["files"] != answers["whole"]["files"]} == set()
    assert {name for name, answer in answers.items() if answer["left"]} == set()


@pytest.mark.slow
def test_a_training_that_remembers_much_is_killed_at_twenty_random_moments(tmp_path):
    whole = play(tmp_path, {"whole": []}, "rich")["whole"]
    moments = {f"random {n}": [{"sleep": random.Random(n).uniform(0.2, 1.0) * whole["seconds"]}] * 2 for n in range(20)}
    answers = play(tmp_path, moments, "rich")
    assert sum(-9 in answer["statuses"] for answer in answers.values()) >= 15
    assert {name for name, answer in answers.items() if answer["files"] != whole["files"]} == set()
    assert {name for name, answer in answers.items() if answer["left"] or answer["curve"] != whole["curve"]} == set()


# --- in this process: runs that stop in the middle, and what is refused when they are taken up again ---------------

RECIPE = {
    "name": "resumed",
    "bits": TERNARY | INT4_SHARED,
    "pipeline": [
        {"train": {"what": ["attention"], "data": "pico", "steps": 2, "batch_size": 2}},
        {"upcycle": {"noise": 0.1}},
        {"train": {"what": ["routed", "router"], "data": "pico", "steps": 6, "batch_size": 2, "checkpoint_every": 2}},
        {"quantize": {}},
    ],
}


def go(folder: Path, progress: Bomb | None = None, recipe: dict | None = None, seed: int = 0, **more):
    model = pico.PICO["qwen2"](seed=seed)
    options = pipeline.Options(progress or Bomb())
    data = more.pop("data", None) or source_for(model)
    return pipeline.apply(recipe or RECIPE, model, data=data, output=folder, options=options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that was stopped after step 5 of its second training: a state and a checkpoint lie there."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(StopError):
        go(folder, Stop("training", 5, 2))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    go(folder)
    return folder


@pytest.fixture
def copied(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def test_the_stopped_run_holds_one_state_and_one_checkpoint(stopped):
    steps = stopped / "run" / "steps"
    assert sorted(str(path.relative_to(steps)) for path in steps.glob("*/*")) == [
        "1-train/state",
        "3-train/checkpoint-4",
    ]


def test_a_stopped_run_goes_on_to_the_same_bytes(copied, finished):
    go(copied)
    assert sha256(copied / "model.safetensors") == sha256(finished / "model.safetensors")
    assert settled(copied) == settled(finished)
    events = [json.loads(line)["event"] for line in (copied / "run" / "journal.jsonl").read_text().splitlines()]
    assert "resumed" in events


def changed(path: list, value) -> dict:
    recipe = json.loads(json.dumps(RECIPE))
    place = recipe
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["pipeline", 2, "train", "steps"], 8, r"recipe\.pipeline\.2\.train\.steps was 6, is now 8"),
        (["bits", "shared", "group_size"], 8, r"recipe\.bits\.1\.shared\.group_size was 16, is now 8"),
        (["seed"], 5, r"recipe\.seed was 0, is now 5"),
    ],
)
def test_a_changed_recipe_is_refused_and_named(stopped, finished, path, value, named):
    for folder in (stopped, finished):
        with pytest.raises(FingerprintError, match=named):
            go(folder, recipe=changed(path, value))


def test_rules_in_another_order_are_another_recipe(stopped):
    recipe = RECIPE | {"bits": INT4_SHARED | TERNARY}
    with pytest.raises(FingerprintError, match=r"recipe\.bits\.0"):
        go(stopped, recipe=recipe)


def test_another_model_and_other_data_are_refused_and_named(stopped):
    with pytest.raises(FingerprintError, match=r"differs: model was \w{12}\.\.\., is now"):
        go(stopped, seed=1)
    other = dataclasses.replace(source_for(pico.PICO["qwen2"]()), fingerprint="other")
    with pytest.raises(FingerprintError, match=r"data\.pico was pico, is now other"):
        go(stopped, data=other)


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
@pytest.mark.parametrize(
    "name", ["state-00001-of-00001.safetensors", "state.json", "trainer_state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_refused_by_name(copied, name, how):
    damage(copied / "run/steps/3-train/checkpoint-4" / name, how)
    with pytest.raises(ArtifactError, match=r"checkpoint-4" if name == "manifest.json" else rf"checkpoint-4/{name}"):
        go(copied)


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_a_damaged_state_is_refused_by_name(copied, name, how):
    damage(copied / "run/steps/1-train/state" / name, how)
    with pytest.raises(ArtifactError, match=r"1-train/state"):
        go(copied)


def test_a_deleted_checkpoint_is_done_again(copied, finished):
    shutil.rmtree(copied / "run/steps/3-train/checkpoint-4")
    go(copied)
    assert sha256(copied / "model.safetensors") == sha256(finished / "model.safetensors")


@pytest.mark.parametrize("name", ["fingerprint.json", "done.json"])
def test_an_unreadable_record_is_refused_by_name(finished, tmp_path, name):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    damage(folder / "run" / name, "truncated")
    with pytest.raises(ArtifactError, match=name):
        go(folder)


def listing(folder: Path) -> dict[str, tuple[int, str]]:
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, sha256(p)) for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_again_changes_nothing_and_gives_the_same_model(finished):
    before = listing(finished)
    model = go(finished, Stop("training", 1))
    assert listing(finished) == before
    loaded = type(model).from_pretrained(finished)
    assert torch.equal(logits(model), logits(loaded))
    mine, theirs = bits_of(model.state_dict()), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_model_of_a_finished_run_can_be_saved_again(finished, tmp_path):
    go(finished).save_pretrained(tmp_path / "again")
    assert sha256(tmp_path / "again" / "model.safetensors") == sha256(finished / "model.safetensors")


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_finished_run_with_damaged_weights_is_refused_by_name(finished, tmp_path, how):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    damage(folder / "model.safetensors", how)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        go(folder)


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_finished_dense_run_with_damaged_weights_is_refused_by_name(tmp_path, how):
    recipe = {"name": "dense", "pipeline": RECIPE["pipeline"][:1]}
    go(tmp_path, recipe=recipe)
    go(tmp_path, recipe=recipe)
    damage(tmp_path / "model.safetensors", how)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        go(tmp_path, recipe=recipe)


def test_another_output_folder_gives_the_same_bytes(finished, tmp_path):
    go(tmp_path / "elsewhere")
    for name in ("model.safetensors", "generation_config.json"):
        assert sha256(tmp_path / "elsewhere" / name) == sha256(finished / name)
    assert settled(tmp_path / "elsewhere") == settled(finished)


def test_without_a_folder_the_result_is_the_same(finished):
    model = pico.PICO["qwen2"]()
    pipeline.apply(RECIPE, model, data=source_for(model))
    assert torch.equal(logits(model), logits(type(model).from_pretrained(finished)))


def test_steps_are_dropped_unless_they_are_to_be_kept(finished, tmp_path):
    assert not list((finished / "run" / "steps").glob("*"))
    model = pico.PICO["qwen2"]()
    options = pipeline.Options(keep_steps=True)
    pipeline.apply(RECIPE, model, data=source_for(model), output=tmp_path, options=options)
    kept = {str(p.relative_to(tmp_path / "run" / "steps")) for p in (tmp_path / "run" / "steps").glob("*/state")}
    assert kept == {"1-train/state", "3-train/state"}


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path):
    recipe = changed(["pipeline", 2, "train", "learning_rate"], 1e30)
    recipe["pipeline"][2]["train"] |= {"max_grad_norm": 1e30, "checkpoint_every": 1}
    with pytest.raises(TrainingError, match="The last checkpoint is kept"):
        go(tmp_path, recipe=recipe)
    assert list((tmp_path / "run" / "steps" / "3-train").glob("checkpoint-*"))


def test_a_checkpoint_that_cannot_be_written_is_a_save_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mote_quant.hf.checkpoint.save_file", full)
    with pytest.raises(SaveError, match=r"checkpoint-1.*No space left.*\. Free space"):
        go(tmp_path)
    assert not list(tmp_path.rglob(".checkpoint*"))


def test_a_journal_that_cannot_be_written_is_a_save_error(tmp_path):
    run = Run.open(tmp_path, {"recipe": {}})
    (run.folder / "journal.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"journal\.jsonl"):
        run.log("step")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveError, match="out cannot be used as an output folder"):
        go(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_with_somebody_elses_model(tmp_path):
    pico.PICO["llama"]().save_pretrained(tmp_path)
    before = sha256(tmp_path / "model.safetensors")
    with pytest.raises(FingerprintError, match="already holds a model that this command did not make"):
        go(tmp_path)
    assert sha256(tmp_path / "model.safetensors") == before
    assert not (tmp_path / "run" / "fingerprint.json").exists()


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_finished_run_whose_other_files_are_not_those_written(finished, tmp_path, name, how):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    damage(folder / name, how)
    with pytest.raises(ArtifactError, match=rf"{name}.*delete .*/run/done\.json to finish this run again, or use"):
        go(folder)
    (folder / "run" / "done.json").unlink()
    go(folder)
    assert settled(folder) == settled(finished)
    assert sha256(folder / "model.safetensors") == sha256(finished / "model.safetensors")


def test_the_processor_is_among_the_files_of_a_finished_run(tmp_path):
    recipe, processor = {"name": "short", "pipeline": RECIPE["pipeline"][1:2]}, build_processor()
    pipeline.apply(recipe, pico.PICO["qwen2"](), processor=processor, output=tmp_path)
    listed = json.loads((tmp_path / "run" / "done.json").read_text())["files"]
    # The model card is everybody's to edit.
    assert {*listed, "README.md"} == {path.name for path in tmp_path.iterdir() if path.is_file()}
    damage(tmp_path / "tokenizer.json", "altered")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json was altered"):
        pipeline.apply(recipe, pico.PICO["qwen2"](), processor=processor, output=tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"files": {}}', '{"files": {"config.json": 1}}'])
def test_a_record_that_says_nothing_is_refused_by_name(finished, tmp_path, content):
    folder = Path(shutil.copytree(finished, tmp_path / "copy"))
    (folder / "run" / "done.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"done\.json .*; delete"):
        go(folder)


def test_a_fingerprint_that_is_none(copied):
    (copied / "run" / "fingerprint.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"fingerprint\.json cannot be read .*list"):
        go(copied)


@pytest.mark.parametrize("where", ["3-train/checkpoint-4", "1-train/state"])
@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_damaged_step_says_which_folder_to_delete(copied, where, how):
    damage(next((copied / "run/steps" / where).glob("*.safetensors")), how)
    with pytest.raises(ArtifactError, match=rf"; delete \S*/{where} to redo this step"):
        go(copied)


def test_folders_that_are_not_ours_are_left_alone(copied, finished):
    strange = [copied / "run/steps" / name for name in ("3-train/checkpoint-old", "foo-bar")]
    for folder in strange:
        folder.mkdir()
    go(copied)
    assert sha256(copied / "model.safetensors") == sha256(finished / "model.safetensors")
    assert strange[1].is_dir()
