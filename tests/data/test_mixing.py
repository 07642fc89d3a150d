"""Several sources as one, batches of like lengths, and the windows both are made in."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.data import open_source
from mote_quant.data.arranging import bucketed, one_by_one
from mote_quant.data.cursor import InMemory
from mote_quant.data.feed import open_feed
from mote_quant.data.mixing import Mixed, distinct, joined, tagged
from mote_quant.data.opener import opener_for
from mote_quant.data.source import IGNORED
from mote_quant.data.windows import Windows
from mote_quant.errors import DataError
from mote_quant.recipe.schema import Train
from tests import pico, processors
from tests.data.rows import jsonl, pairs, texts
from tests.processors import album
from tests.sources import source_for


def numbers(count, first=0):
    return [{"input_ids": [n] * (1 + n % 7), "labels": [n] * (1 + n % 7), "n": n} for n in range(first, first + count)]


def mixed(seed=0):
    return Mixed([InMemory(numbers(10), seed, 0), InMemory(numbers(4, 100), seed, 1)], [3.0, 1.0], seed)


def opened(name, max_length=32, processor=None):
    return open_source(name, processor=processor or processors.tokenizer(), max_length=max_length)


def feed(data, processor=None, **settings):
    config = Train.model_validate({"what": ["routed"], "data": data, "steps": 2, "batch_size": 2} | settings)
    model = pico.PICO["llama" if processor is None else "llava"]()
    return open_feed(config, opener_for(model, processor=processor or processors.tokenizer()), 0)


def test_sources_are_drawn_by_their_weights_each_epoch_by_epoch():
    cursor = mixed()
    drawn = [cursor.take() for _ in range(4000)]
    assert Counter(sample["source"] for sample in drawn)[0] == pytest.approx(3000, abs=100)
    for source, size in ((0, 10), (1, 4)):
        own = [sample["sample"]["n"] for sample in drawn if sample["source"] == source]
        epochs = [own[start : start + size] for start in range(0, len(own) - size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 5


def test_a_mix_goes_on_from_anywhere():
    cursor = mixed()
    states, found = [], []
    for _ in range(1200):
        states.append(json.loads(json.dumps(cursor.state())))
        found.append(cursor.take())
    for start in (0, 3, 1023, 1024, 1100):
        other = mixed()
        other.load(states[start])
        assert [other.take() for _ in range(1200 - start)] == found[start:]
    other = mixed(seed=1)
    assert [other.take() for _ in range(50)] != found[:50]


def test_the_same_data_by_two_names_is_one_source(tmp_path):
    first, other = (opened(jsonl(tmp_path / name, pairs(9))) for name in ("a.jsonl", "b.jsonl"))
    third = opened(jsonl(tmp_path / "c.jsonl", pairs(9, seed=1)))
    parts = distinct({"a": first, "b": other, "c": third}, {"a": 2.0, "b": 0.5, "c": 1.0})
    assert [(source.fingerprint, weight) for source, weight in parts] == [
        (first.fingerprint, 2.5),
        (third.fingerprint, 1.0),
    ]
    assert joined(parts[:1]) is first


def test_blocks_and_answers_share_a_batch(tmp_path):
    blocks = opened(jsonl(tmp_path / "a.jsonl", texts(200)), 16)
    answers = opened(jsonl(tmp_path / "b.jsonl", pairs(40)))
    source = joined([(blocks, 1.0), (answers, 1.0)])
    assert len(source.validation) == len(blocks.validation) + len(answers.validation)
    samples = [tagged(answers.train[0], 1), tagged(blocks.train[0], 0), tagged(answers.train[1], 1)]
    batch = source.collate(samples)
    alone = [blocks.collate([blocks.train[0]]), *(answers.collate([sample]) for sample in answers.train[:2])]
    for row, expected in enumerate(alone):
        width = expected["input_ids"].shape[1]
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED)):
            assert torch.equal(batch[key][row, :width], expected[key][0])
            assert set(batch[key][row, width:].tolist()) <= {fill}


def test_kinds_are_not_mixed(tmp_path):
    processor = processors.llava()
    seen = opened(album(tmp_path, [{"image": "0.png", "prompt": "what?", "completion": "a"}]), None, processor)
    read = opened(jsonl(tmp_path / "a.jsonl", pairs(5)), 32, processor)
    with pytest.raises(DataError, match=r"different kinds: .*album\.jsonl \(vqa\), .*a\.jsonl \(text\)"):
        distinct({"a": seen, "b": read}, {"a": 1.0, "b": 1.0})


def test_albums_are_mixed(tmp_path):
    processor = processors.qwen2_5_vl()
    rows = [{"image": f"{n}.png", "prompt": "what?", "completion": "a"} for n in range(4)]
    first, second = (
        opened(album(tmp_path, rows), None, processor),
        opened(album(tmp_path, rows[:2], "b.jsonl"), None, processor),
    )
    source = joined([(first, 1.0), (second, 1.0)])
    batch = source.collate([tagged(second.train[1], 1), tagged(first.train[2], 0)])
    one, two = first.collate(first.train[2:3]), second.collate(second.train[1:2])
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"], two["pixel_values"]]))
    assert torch.equal(batch["image_grid_thw"], torch.cat([one["image_grid_thw"], two["image_grid_thw"]]))


def test_another_name_for_all_data_replaces_the_whole_mix(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", pairs(30))
    config = Train.model_validate({"what": ["routed"], "data": {"x.jsonl": 2, "y.jsonl": 1}, "steps": 2})
    made = open_feed(config, opener_for(pico.PICO["llama"](), processor=processors.tokenizer(), data=name), 0)
    assert [(source.name, weight) for source, weight in made.parts] == [(name, 3.0)]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 3))
def test_sorting_keeps_every_sample_of_a_window(batch_size, count, seed):
    samples = numbers(count)
    arrangement = bucketed(batch_size, seed)
    rows, _ = arrangement.rows(samples, 0)
    assert sorted(row[0]["n"] for row in rows) == list(range(count))
    assert arrangement.rows(samples, 0)[0] == rows


def test_batches_are_of_like_lengths_in_a_drawn_order():
    samples = [{"input_ids": [0] * length} for length in torch.randint(1, 50, (256,)).tolist()]
    arrangement = bucketed(8, 0)
    rows, count = arrangement.rows(samples, 0)
    lengths = [len(row[0]["input_ids"]) for row in rows]
    batches = [lengths[start : start + 8] for start in range(0, 256, 8)]
    assert max(max(batch) - min(batch) for batch in batches) <= 6
    assert [batch[0] for batch in batches] != sorted((batch[0] for batch in batches), reverse=True)
    told = arrangement.told(count)["bucketed"]
    padded = sum(8 * max(batch) for batch in batches)
    assert told["padding"] == pytest.approx(1 - sum(lengths) / padded, abs=1e-4)
    assert told["padding"] < 0.1 < told["padding_unsorted"]
    assert arrangement.rows(samples, 1)[0] != rows


def windows(total=40, ahead=4):
    return Windows(mixed(), bucketed(3, 0), total, ahead)


def test_rows_can_be_asked_for_from_any_place_that_is_kept():
    schedule = Windows(mixed(), one_by_one(2), 40, 4)
    found, states = [], []
    for index in range(40):
        found.append(schedule[index])
        states.append(json.loads(json.dumps(schedule.state_dict())))
    for read in (0, 5, 20, 39):
        # The step is behind what was read.
        for first in range(max(0, read - 4), read + 1):
            other = Windows(mixed(), one_by_one(2), 40, 4)
            other.load_state_dict(states[read])
            assert [other[index] for index in range(first, 40)] == found[first:]
    assert max(len(state["places"]) for state in states) <= 4
    # Once more from the beginning.
    assert schedule[0] == found[0]
    assert [schedule[index] for index in range(1, 40)] == found[1:]


def test_what_is_counted_goes_on_after_a_stop():
    schedule = Windows(mixed(), bucketed(1, 0), 70, 4)
    whole = [schedule[index] for index in range(70)]
    other = Windows(mixed(), bucketed(1, 0), 70, 4)
    half = [other[index] for index in range(66)]
    resumed = Windows(mixed(), bucketed(1, 0), 70, 4)
    resumed.load_state_dict(json.loads(json.dumps(other.state_dict())))
    assert half + [resumed[index] for index in range(66, 70)] == whole
    assert resumed.counted() == schedule.counted()
    assert sum(schedule.counted()["sources"].values()) == 70


def test_only_some_rows_asked_for_are_those_of_all():
    # One of two processes.
    whole = Windows(mixed(), bucketed(2, 0), 40, 8)
    found = [whole[index] for index in range(40)]
    half = Windows(mixed(), bucketed(2, 0), 40, 8)
    assert [half[index] for index in range(1, 40, 2)] == found[1::2]


def test_notes_name_sources(tmp_path):
    names = [jsonl(tmp_path / f"{n}.jsonl", pairs(9, seed=n)) for n in range(2)]
    made = feed({names[0]: 1, names[1]: 3}, steps=20)
    schedule = made.schedule(20)
    batch = made.collate([schedule[index] for index in range(40)])
    assert batch["input_ids"].shape[0] == 40
    told = made.notes(schedule)["data"]["sources"]
    assert list(told) == names
    assert sum(told.values()) == 40
    assert told[names[1]] > told[names[0]]


def test_fewer_samples_than_a_step_takes_is_said(tmp_path, caplog):
    made = feed(jsonl(tmp_path / "a.jsonl", pairs(3)), batch_size=4)
    said = made.notes(made.schedule(2))["data"]["short"]
    assert "a step takes 4 samples" in said
    assert "a.jsonl has 3" in said
    assert said in caplog.text
    assert feed(jsonl(tmp_path / "a.jsonl", pairs(3)), batch_size=3).notes(made.schedule(2)) == {}


@pytest.mark.parametrize("way", [{"bucket": True}, {"pack": True, "max_length": 60}])
def test_rows_with_images_are_of_unknown_length(tmp_path, way):
    path = album(tmp_path, [{"image": "0.png", "prompt": "what?", "completion": "a"}])
    with pytest.raises(DataError, match="has images: how long a sample is shows later; leave pack and bucket out"):
        feed(path, processors.llava(), **way)


def test_samples_from_python_can_be_packed_and_sorted():
    model = pico.PICO["llama"]()
    config = Train.model_validate({"what": ["routed"], "data": "pico", "steps": 1, "pack": True, "max_length": 30})
    made = open_feed(config, lambda *args: source_for(model), 0).fitted([model])
    schedule = made.schedule(1)
    assert made.collate([schedule[0], schedule[1]])["input_ids"].shape == (2, 27)
