"""lm-eval on a packed, reloaded model: its numbers are ours, nothing is fetched, printed or left behind."""

from __future__ import annotations

import copy
import logging
import os
import random
import socket

import pytest
import torch

import mote_quant
from mote_quant.data import text
from mote_quant.data.source import Source
from mote_quant.data.stdlib_text.corpus import documents
from mote_quant.data.stdlib_text.processor import VOCABULARY, build_processor
from mote_quant.errors import DataError, MissingExtraError, RequestError
from mote_quant.evaluate import harness, local_tasks
from mote_quant.evaluate.language import summed_loss
from mote_quant.hf.loading import load_model
from tests import pico

LIMIT = 30
RECIPE = {
    "name": "tiny",
    "seed": 0,
    "bits": {"routed": "ternary", "shared": {"format": "int4", "group_size": 32}},
    "pipeline": [
        {"upcycle": {"experts": 2}},
        {"train": {"what": ["routed", "router", "shared"], "data": "few", "steps": 8, "batch_size": 4}},
        "quantize",
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "mote"
    dense = pico.PICO["qwen2"](hidden=64, ffn=96, vocab_size=VOCABULARY, max_position_embeddings=1024)
    samples = text.blocks(documents()["train"][:2], build_processor(), 64)
    few = Source("few", "few", samples, samples[:4], samples[:4], text.collate_blocks, "text")
    mote_quant.apply(RECIPE, dense, data=few, output=folder)
    return load_model(folder)


@pytest.fixture
def offline(monkeypatch):
    """What was asked of the network: nothing gets through."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def write_task(folder, name="mine", **settings):
    """A task file over a JSONL of two questions."""
    (folder / "rows.jsonl").write_text('{"q": "a", "c": ["b", "c"], "g": 0}\n{"q": "d", "c": ["e", "f"], "g": 1}\n')
    lines = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": f"{{data_files: {{test: {folder}/rows.jsonl}}}}",
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "q",
        "doc_to_choice": "c",
        "doc_to_target": "g",
        **settings,
    }
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return [folder]


def log_likelihoods(model, tokenizer, row):
    begun = len(tokenizer(row["context"])["input_ids"])
    for choice in row["choices"]:
        ids = torch.tensor(tokenizer(row["context"] + choice)["input_ids"])
        said = model(ids[None]).logits[0].log_softmax(dim=-1)
        yield float(said[begun - 1 : -1].gather(1, ids[begun:, None]).sum())


@torch.no_grad()
def test_accuracy_is_that_of_a_loop_of_our_own(model, offline):
    tokenizer, right = build_processor(), 0
    found = harness.run_tasks(model, tokenizer, ["stdlib_next_line"], limit=LIMIT)
    for row in list(local_tasks.next_lines()["test"])[:LIMIT]:
        scores = list(log_likelihoods(model, tokenizer, row))
        right += scores.index(max(scores)) == row["gold"]
    assert found == {"stdlib_next_line.acc": right / LIMIT, "stdlib_next_line.samples": LIMIT}
    assert 0 < right < LIMIT
    assert offline == []


@torch.no_grad()
def test_bits_per_byte_are_those_of_our_own_loss(model, offline):
    tokenizer, nats, size = build_processor(), 0.0, 0
    found = harness.run_tasks(model, tokenizer, ["stdlib_passages"], limit=LIMIT, batch_size=3)
    for row in list(local_tasks.passages()["test"])[:LIMIT]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(row["text"])["input_ids"]]])
        assert ids.shape[1] <= model.config.max_position_embeddings
        nats += summed_loss(model, {"input_ids": ids, "labels": ids})[0]
        size += len(row["text"].encode())
    assert found["stdlib_passages.bits_per_byte"] == pytest.approx(
        nats / size / torch.tensor(2.0).log().item(), rel=1e-5
    )
    assert found["stdlib_passages.samples"] == LIMIT
    assert offline == []


def test_nothing_is_printed_changed_or_left_behind(model, capfd):
    tokenizer = copy.deepcopy(build_processor())
    tokenizer.pad_token = None
    ids = torch.arange(40)[None]
    before, logger = model(ids).logits, logging.getLogger("lm_eval")
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate(), dict(os.environ), logger.level, tokenizer.pad_token
    harness.run_tasks(model.train(), tokenizer, ["stdlib_next_line", "stdlib_passages"], limit=2)
    assert model.training
    after = torch.get_rng_state(), random.getstate(), dict(os.environ), logger.level, tokenizer.pad_token
    assert torch.equal(after[0], states[0])
    assert after[1:] == states[1:]
    assert torch.equal(model.eval()(ids).logits, before)
    assert capfd.readouterr() == ("", "")


def test_a_task_of_a_folder_and_ours_in_one_run(model, tmp_path, offline, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folders = write_task(tmp_path)
    found = harness.run_tasks(model, build_processor(), ["mine", "stdlib_next_line"], folders=folders, limit=4)
    assert found["mine.samples"] == 2
    assert found["stdlib_next_line.samples"] == 4
    assert found["mine.acc"] in (0.0, 0.5, 1.0)
    assert offline == []


def test_a_vision_language_model_is_asked_in_text(offline):
    class Processor:
        tokenizer = build_processor()

    vlm = pico.PICO["llava"](vocab_size=VOCABULARY, max_position_embeddings=1024)
    found = harness.run_tasks(vlm, Processor(), ["stdlib_next_line", "stdlib_passages"], limit=2)
    assert found["stdlib_next_line.samples"] == 2
    assert found["stdlib_passages.bits_per_byte"] > 1
    assert offline == []


def test_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(DataError, match="needs the model's tokenizer"):
        harness.run_tasks(model, None, ["stdlib_next_line"])


def test_every_shipped_task_is_known_without_the_thousands_of_lm_eval(monkeypatch):
    from lm_eval.tasks import TaskManager

    def only_ours(self, include_defaults=True, _plain=TaskManager.__init__, **settings):
        assert not include_defaults
        _plain(self, include_defaults=False, **settings)

    monkeypatch.setattr(TaskManager, "__init__", only_ours)
    harness._manager.cache_clear()
    files = sorted(path.stem for path in harness.own_folder().glob("*.yaml"))
    assert files == harness.known_tasks()
    assert "stdlib_next_line" in files
    harness.check_tasks(files)


@pytest.fixture
def few_of_theirs(tmp_path, monkeypatch):
    """lm-eval as if it shipped one task."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_task(theirs, "hellaswag")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(theirs / "manager.py"))
    harness._manager.cache_clear()
    yield
    harness._manager.cache_clear()


def test_unknown_tasks_are_named_all_at_once_with_near_misses(few_of_theirs, model):
    harness.check_tasks(["hellaswag", "stdlib_passages"])
    with pytest.raises(RequestError) as caught:
        harness.run_tasks(model, build_processor(), ["hellaswagg", "stdlib_passages", "stdlib_next_lin", "qqq"])
    assert str(caught.value).splitlines() == [
        "lm-eval knows no task hellaswagg; did you mean hellaswag?",
        "lm-eval knows no task stdlib_next_lin; did you mean stdlib_next_line?",
        "lm-eval knows no task qqq",
    ]


def test_bad_requests(tmp_path):
    with pytest.raises(RequestError, match="at least one name"):
        harness.check_tasks([])
    with pytest.raises(RequestError, match=r"no such folder of tasks: .*absent"):
        harness.check_tasks(["stdlib_passages"], [tmp_path / "absent"])


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mote-quant\[eval\]'"):
        harness.check_tasks(["stdlib_passages"])


@pytest.mark.parametrize("path", ["nobody/has-this-data-set", "json"])
def test_data_that_cannot_be_had(path, model, tmp_path, offline, monkeypatch):
    for config in ("datasets.config", "huggingface_hub.constants"):  # or it tries again and again
        monkeypatch.setattr(f"{config}.HF_HUB_OFFLINE", True)
    folders = write_task(tmp_path, "lost", dataset_path=path, dataset_kwargs="{data_files: {test: absent.jsonl}}")
    harness.check_tasks(["lost"], folders)
    for asked in (
        lambda: harness.check_tasks(["lost"], folders, data=True),
        lambda: harness.run_tasks(model, build_processor(), ["lost"], folders=folders),
    ):
        with pytest.raises(DataError, match=r"task lost cannot be opened: .*on this machine"):
            asked()


def test_a_text_task_without_its_file_says_what_to_set(model, monkeypatch):
    monkeypatch.delenv(local_tasks.FILE_VARIABLE, raising=False)
    with pytest.raises(DataError, match=r"task tinystories_continuation: .*MOTE_QUANT_TEXT"):
        harness.run_tasks(model, build_processor(), ["tinystories_continuation"])


def test_the_task_of_stories_asks_of_the_last_fifth_as_a_story_begins(model, monkeypatch, tmp_path):
    stories = [
        f"Tim{n} had a ball. He gave it to Ann. She said: thank you for ball number {n}, Tim!" for n in range(40)
    ]
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(stories))
    monkeypatch.setenv(local_tasks.FILE_VARIABLE, str(tmp_path / "stories.txt"))
    found = harness.run_tasks(model, build_processor(), ["tinystories_continuation"])
    assert found["tinystories_continuation.samples"] == 8


@pytest.mark.parametrize(
    ("setting", "why"), [("unsafe_code", "code that the model writes"), ("doc_to_image", "images")]
)
def test_tasks_that_are_not_run(setting, why, model, tmp_path):
    folders = write_task(tmp_path, "odd", **{setting: "true" if setting == "unsafe_code" else "q"})
    with pytest.raises(RequestError, match=f"task odd .*{why}"):
        harness.run_tasks(model, build_processor(), ["odd"], folders=folders)


def test_what_is_kept_of_lm_evals_results():
    found = {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 3, "em,strict": 1, "f,x": "N/A"},
            "group": {"alias": "g", "acc,none": 0.25},
        },
        "n-samples": {"a": {"original": 9, "effective": 3}},
    }
    assert dict(harness._flat(found)) == {"a.acc": 0.5, "a.em.strict": 1.0, "a.samples": 3.0, "group.acc": 0.25}
