"""The embedded vision-language task."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from mote_quant.data import open_source
from mote_quant.data.digits_vqa.facts import FACTS, answers
from mote_quant.data.digits_vqa.model import build_config, train_vision
from mote_quant.data.digits_vqa.processor import build_processor
from mote_quant.data.digits_vqa.questions import KINDS
from mote_quant.data.digits_vqa.scenes import COLUMNS, HEIGHT, ROWS, WIDTH, load_digits
from mote_quant.data.digits_vqa.source import Sizes, build_source
from mote_quant.data.source import IGNORED
from mote_quant.errors import DataError

SMALL = Sizes(train=3000, validation=200, test=800)


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture(scope="module")
def source(processor):
    return build_source(processor, 0, SMALL)


def test_no_image_of_one_split_is_seen_in_another(source):
    used = {
        split: {image for sample in getattr(source, split) for image in sample["images"] if image is not None}
        for split in ("train", "validation", "test")
    }
    assert all(used.values())
    assert used["train"].isdisjoint(used["test"])
    assert used["train"].isdisjoint(used["validation"])
    assert used["validation"].isdisjoint(used["test"])


def test_a_seed_decides_everything(source, processor):
    sizes = Sizes(train=50, validation=10, test=10)
    first, again, other = (build_source(processor, seed, sizes) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first.train, again.train, strict=True))


def test_a_split_does_not_depend_on_the_size_of_the_others(source, processor):
    alone = build_source(processor, 0, Sizes(train=0, validation=0, test=20))
    assert [s["question"] for s in alone.test] == [s["question"] for s in source.test[:20]]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(alone.test, source.test, strict=False))


def test_every_kind_is_asked_and_no_question_twice(source):
    assert {sample["kind"] for sample in source.train} == set(KINDS)
    asked = [(sample["question"], sample["images"]) for sample in source.train]
    assert len(set(asked)) == len(asked)


def test_a_blind_guesser_scores_low(source):
    """The most frequent training answer to each question text, without a look at the image."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in source.train:
        seen[sample["question"]][sample["answer"]] += 1
    right = sum(
        seen[sample["question"]].most_common(1)[0][0] == sample["answer"]
        for sample in source.test
        if seen[sample["question"]]
    )
    assert right / len(source.test) < 0.25


def test_labels_are_the_answer_and_the_end(source, processor):
    samples = source.test[:5]
    batch = source.collate(samples)
    tokenizer = processor.tokenizer
    for row, sample in enumerate(samples):
        learned = batch["labels"][row][batch["labels"][row] != IGNORED].tolist()
        assert learned[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(learned[:-1]).strip() == sample["answer"]
    images = (batch["input_ids"] == build_config().image_token_index).sum(dim=1)
    assert images.tolist() == [ROWS * COLUMNS] * len(samples)
    assert batch["pixel_values"].shape == (5, 3, HEIGHT, WIDTH)


def test_no_word_of_a_question_or_answer_is_unknown(source, processor):
    for sample in source.test[:200]:
        for text in (sample["question"], sample["answer"]):
            assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_the_processor_saves_and_reloads(tmp_path, source, processor):
    from transformers import AutoProcessor

    processor.save_pretrained(tmp_path)
    reloaded = build_source(AutoProcessor.from_pretrained(tmp_path), 0, Sizes(train=0, validation=0, test=8))
    for name, value in source.collate(source.test[:8]).items():
        assert torch.equal(value, reloaded.collate(reloaded.test)[name])


def test_facts_hold():
    assert answers(FACTS["element"])[8] == "oxygen"
    assert answers(FACTS["country"])[44] == "Britain"
    assert answers(FACTS["prime"])[97] == "yes"
    assert answers(FACTS["prime"])[91] == "no"
    assert answers(FACTS["divisors"])[12] == "6"


def test_the_tower_learns_to_read_from_training_images(processor):
    from transformers import SiglipVisionModel

    torch.manual_seed(0)
    tower = SiglipVisionModel(build_config().vision_config)
    digits = load_digits()
    first = train_vision(tower, digits, 0, steps=2)
    assert train_vision(tower, digits, 0, steps=60) < 0.8 * first


def test_a_tokenizer_is_not_enough(processor):
    with pytest.raises(DataError, match=r"digits-vqa needs a processor that takes images.*Tokenizer"):
        open_source("digits-vqa", processor=processor.tokenizer)
