"""Rows that are read as they are needed: in which order, from where on, and what is said of bad ones."""

from __future__ import annotations

import itertools
import json
import logging

import datasets
import pytest

from mote_quant.data import open_source, text
from mote_quant.data.opener import opener_for
from mote_quant.data.reading import Reading
from mote_quant.data.source import whole
from mote_quant.data.streams import StreamCursor
from mote_quant.errors import DataError, RunError
from tests import pico, processors
from tests.data.rows import jsonl, pairs, texts
from tests.processors import CHAT, album

STREAM = Reading(stream=True, shuffle_buffer=5)


def opened(name, reading=STREAM, max_length=32, processor=None):
    return open_source(name, processor=processor or processors.tokenizer(), max_length=max_length, reading=reading)


def taken(cursor, count):
    return [list(map(int, cursor.take()["input_ids"])) for _ in range(count)]


@pytest.fixture
def asked(monkeypatch):
    """How many texts were tokenized."""
    calls = []
    original = text.answer_sample
    monkeypatch.setattr(text, "answer_sample", lambda *args: calls.append(1) or original(*args))
    return calls


FORMS = ["jsonl", "parquet", "folder", "saved", "hub"]


@pytest.fixture(params=FORMS)
def named(request, tmp_path, monkeypatch):
    """The same rows, by each kind of name."""
    rows = pairs(23)
    table = datasets.Dataset.from_list(rows)
    if request.param == "jsonl":
        return jsonl(tmp_path / "a.jsonl", rows)
    if request.param == "parquet":
        table.to_parquet(tmp_path / "a.parquet", batch_size=4)
        return str(tmp_path / "a.parquet")
    if request.param == "folder":
        jsonl(tmp_path / "a.jsonl", rows[:9])
        jsonl(tmp_path / "b.jsonl", rows[9:])
        return str(tmp_path)
    if request.param == "saved":
        table.save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    def load_dataset(path, config, split, streaming, revision):
        assert (path, config, split, streaming) == ("somebody/rows", "small", "train", True)
        return table.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("mote_quant.data.streams.feeds._revision", lambda path: "abc")
    return "somebody/rows:small"


def test_every_row_once_an_epoch_and_on_from_anywhere(named, tmp_path, asked):
    (tmp_path / "whole").mkdir()
    name = jsonl(tmp_path / "whole" / "a.jsonl", pairs(23))
    plain = whole(open_source(name, processor=processors.tokenizer(), max_length=32))
    everything = sorted(sample["input_ids"] for sample in plain.test)
    source = opened(named)
    assert len(source.train) == 0
    cursor = StreamCursor(source.stream, 0)
    states = []
    found = []
    for _ in range(60):
        states.append(json.loads(json.dumps(cursor.state())))
        found += taken(cursor, 1)
    assert sorted(found[:23]) == sorted(found[23:46]) == everything
    assert found[:23] != found[23:46]
    for start in (0, 1, 4, 5, 21, 22, 23, 24, 50):
        other = StreamCursor(opened(named).stream, 0)
        asked.clear()
        other.load(states[start])
        assert taken(other, 60 - start) == found[start:]
        # Nothing from before its window was tokenized again.
        assert len(asked) - (60 - start) < 10
    assert taken(StreamCursor(source.stream, 1), 23) != found[:23]


def test_blocks_carry_over_what_is_left(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", texts(40, 20))
    stream = opened(name, max_length=16).stream
    cursor = StreamCursor(stream, 0)
    states, found = [], []
    for _ in range(50):
        states.append(json.loads(json.dumps(cursor.state())))
        found += taken(cursor, 1)
    assert {len(ids) for ids in found} == {16}
    for start in (0, 7, 33):
        other = StreamCursor(stream, 0)
        other.load(states[start])
        assert taken(other, 50 - start) == found[start:]


def test_rows_are_only_read_as_they_are_needed(tmp_path, asked):
    source = opened(jsonl(tmp_path / "a.jsonl", pairs(5000)))
    assert not asked
    taken(StreamCursor(source.stream, 0), 7)
    assert len(asked) == 10


def test_the_first_rows_are_held_out(tmp_path):
    rows = pairs(12)
    name = jsonl(tmp_path / "a.jsonl", rows)
    source = opened(name, Reading(True, 3, validation_rows=4))
    first = open_source(jsonl(tmp_path / "first.jsonl", rows[:4]), processor=processors.tokenizer(), max_length=32)
    held = [sample["input_ids"] for sample in source.validation]
    assert held == [sample["input_ids"] for sample in first.train]
    seen = taken(StreamCursor(source.stream, 0), 24)
    assert not any(ids in held for ids in seen)
    assert sorted(seen[:8]) == sorted(seen[8:16])


@pytest.mark.parametrize("rows", [4, 9])
def test_nothing_is_left_behind_the_held_out_rows(tmp_path, rows):
    with pytest.raises(DataError, match=f"nothing to train on behind the {rows} rows that are held out"):
        opened(jsonl(tmp_path / "a.jsonl", pairs(4)), Reading(True, 3, validation_rows=rows))


def test_a_stream_shorter_than_a_step_says_so(tmp_path, caplog):
    source = opened(jsonl(tmp_path / "a.jsonl", pairs(4)))
    for wanted, said in ((4, 0), (5, 1)):
        taken(StreamCursor(source.stream, 0, wanted=wanted), 12)
        assert caplog.text.count("a step takes 5 samples") == said
    assert f"{source.name} has 4: a step can see one of them twice" in caplog.text


BAD = {
    "no JSON": ('{"prompt": "a", "completion', "it is no JSON"),
    "a list": ("[1, 2]", "no JSON object"),
    "a column missing": ('{"prompt": "a"}', "completion is None, text is needed"),
    "too long": (json.dumps({"prompt": "a" * 40, "completion": "b"}), "the limit is 32"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, caplog, kind):
    line, says = BAD[kind]
    name = jsonl(tmp_path / "a.jsonl", pairs(9))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:6], "", line, *lines[6:]]))
    cursor = StreamCursor(opened(name).stream, 0)
    taken(cursor, 5)
    state = cursor.state()
    with pytest.raises(DataError, match=r"a\.jsonl, row 8: .*" + says) as caught:
        taken(cursor, 1)
    assert "say bad_rows: 1" in str(caught.value)
    # The same place with more patience.
    patient = StreamCursor(opened(name, Reading(True, 5, bad_rows=1)).stream, 0)
    patient.load(state)
    with caplog.at_level(logging.WARNING):
        found = taken(patient, 4)
    assert "row 8" in caplog.text
    assert patient.bad == 1
    uninterrupted = StreamCursor(opened(name, Reading(True, 5, bad_rows=1)).stream, 0)
    assert taken(uninterrupted, 9)[5:] == found
    with pytest.raises(DataError, match="say bad_rows: 2"):
        taken(uninterrupted, 6)


def test_patience_is_no_part_of_what_a_stream_is(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", pairs(9))
    first = opened(name).fingerprint
    assert opened(name, Reading(True, 5, bad_rows=3)).fingerprint == first
    others = [opened(name, Reading(True, 6)), opened(name, Reading(True, 5, 2)), opened(name, max_length=31)]
    jsonl(tmp_path / "a.jsonl", pairs(9, seed=1))
    assert len({first, opened(name).fingerprint, *(source.fingerprint for source in others)}) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ('{"body": "a"}\n', "has the columns body"),
        ('{"text": \n', "row 1: it is no JSON"),
        ('{"text": "a"}\n', "fewer than 32 tokens"),
    ],
)
def test_streams_that_nothing_can_be_made_of(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=says):
        StreamCursor(opened(str(tmp_path / "a.jsonl")).stream, 0).take()


def test_plain_text_is_no_stream(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="plain text is read whole; leave stream out"):
        opened(str(tmp_path / "a.txt"))


def test_a_reader_that_gives_up_leaves_a_run_that_can_be_resumed(monkeypatch):
    def broken():
        yield from pairs(3)
        raise ConnectionError("the line is dead")

    made = datasets.IterableDataset.from_generator(broken)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: made)
    monkeypatch.setattr("mote_quant.data.streams.feeds._revision", lambda path: None)
    cursor = StreamCursor(opened("somebody/rows", Reading(True, 2)).stream, 0)
    taken(cursor, 2)
    with pytest.raises(RunError, match=r"after row 3: the line is dead.*same command goes on") as caught:
        taken(cursor, 2)
    assert caught.value.resumable


def test_the_hub_is_not_there(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("mote_quant.data.streams.feeds._revision", lambda path: None)
    with pytest.raises(DataError, match=r"could not load it: no route\. Check the connection"):
        opened("somebody/rows")


def test_a_stream_is_cut_to_the_model(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", texts(200, 20))
    model = pico.PICO["llama"]()
    open_data = opener_for(model, processor=processors.tokenizer())
    source = open_data(name, None, STREAM)
    assert source.stream.block == model.config.max_position_embeddings
    assert open_data(name, None, STREAM) is source
    assert not len(open_data(name, 8, STREAM).train)


def test_rows_with_images_can_be_streamed(tmp_path):
    rows = [{"image": f"{n % 4}.png", "prompt": "what is it?", "completion": f"a cat {n}"} for n in range(7)]
    path = album(tmp_path, rows)
    for processor in (processors.llava(), processors.llava(CHAT)):
        table = open_source(path, processor=processor)
        source = opened(path, Reading(True, 1), None, processor)
        assert source.kind == "vqa"
        cursor = StreamCursor(source.stream, 0)
        streamed = source.collate([cursor.take() for _ in range(7)])
        expected = table.collate(whole(table).test)
        assert all((streamed[key] == expected[key]).all() for key in expected)


def test_parquet_with_images_and_conversations_in_it_can_be_streamed(tmp_path):
    path = album(tmp_path, [{"image": "0.png", "prompt": "what?", "completion": "a"}])
    image = {"bytes": (tmp_path / "0.png").read_bytes(), "path": None}
    turns = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a cat"}]
    made = datasets.Dataset.from_list([{"image": image, "messages": json.dumps(turns)}])
    kinds = datasets.Features({"image": datasets.Image(), "messages": datasets.Json()})
    made.cast(kinds).to_parquet(tmp_path / "b.parquet")
    processor = processors.llava(CHAT.replace("{{ m.role }}: ", "{{ 'it' if m.role == 'assistant' else m.role }}: "))
    source = opened(str(tmp_path / "b.parquet"), Reading(True, 1), None, processor)
    batch = source.collate([StreamCursor(source.stream, 0).take()])
    other = open_source(path, processor=processor)
    assert (batch["pixel_values"] == other.collate(other.train)["pixel_values"]).all()


def test_a_stream_of_images_that_are_not_there(tmp_path):
    path = album(tmp_path, [{"image": name, "prompt": "what?", "completion": "a"} for name in ("0.png", "9.png")])
    cursor = StreamCursor(opened(path, Reading(True, 1), None, processors.llava()).stream, 0)
    cursor.take()
    with pytest.raises(DataError, match=r"row 2: the image .*9\.png does not exist"):
        cursor.take()


def test_documents_by_themselves(tmp_path):
    name = jsonl(tmp_path / "a.jsonl", [{"text": "abc"}, {"text": "a" * 20}])
    cursor = StreamCursor(opened(name, Reading(True, 1, apart=True), 8).stream, 0)
    assert [len(ids) for ids in itertools.islice(taken(cursor, 4), 4)] == [4, 8, 8, 5]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1xxxx", r"a\.parquet cannot be read: Parquet magic bytes"),
        ("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', r"a\.jsonl is not UTF-8 text"),
        ("a.json", b'[{"text": "a"}]', "row 1: it is no JSON object; a stream wants one on each line"),
    ],
)
def test_damaged_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        opened(str(tmp_path / name))
