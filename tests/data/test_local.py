"""Local files as training data."""

from __future__ import annotations

import copy
import json

import pytest
from transformers import ByT5Tokenizer

from mote_quant.data import open_source, set_apart, text
from mote_quant.data.opener import opener_for
from mote_quant.data.source import IGNORED, split, whole, within
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import DataError
from tests import pico


@pytest.fixture(scope="module")
def tokenizer():
    return build_processor()


def rows(path, *values):
    path.write_text("\n".join(json.dumps(value) for value in values))
    return str(path)


def test_text_is_cut_into_blocks_that_tile_it(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    words = [f"word{i} " for i in range(400)]
    path.write_text("".join(words))
    source = open_source(str(path), processor=tokenizer, max_length=16)
    samples = [*source.train, *source.validation, *source.test]
    ids = [token for sample in samples for token in sample["input_ids"].tolist()]
    whole = tokenizer("".join(words).strip())["input_ids"]
    assert all(len(sample["input_ids"]) == 16 for sample in samples)
    assert ids == [*whole, tokenizer.eos_token_id][: len(ids)]
    assert len(whole) - len(ids) < 16


def test_bytes_are_those_of_the_predicted_tokens(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("a naïve café — déjà vu " * 50)
    sample = open_source(str(path), processor=tokenizer, max_length=32).train[0]
    predicted = tokenizer.decode(sample["input_ids"][1:])
    assert abs(sample["bytes"] - len(predicted.encode())) <= 4  # a token may hold half of a character


def test_documents_end_with_the_end_token(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("<|endoftext|>".join(["first story " * 10, "second story " * 10]))
    source = open_source(str(path), processor=tokenizer, max_length=8)
    ids = [token for sample in source.train for token in sample["input_ids"].tolist()]
    assert tokenizer.eos_token_id in ids


def test_prompts_are_not_learned_and_rows_are_padded(tmp_path, tokenizer):
    name = rows(
        tmp_path / "a.jsonl",
        {"prompt": "two plus two is", "completion": " four"},
        {"prompt": "the capital of France, as everybody knows, is", "completion": " Paris"},
    )
    source = open_source(name, processor=tokenizer, max_length=64)
    batch = source.collate(source.train)
    for row, sample in zip(range(2), source.train, strict=True):
        learned = batch["labels"][row][batch["labels"][row] != IGNORED]
        text = {0: " four", 1: " Paris"}[row]
        assert learned.tolist() == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert int(batch["attention_mask"][row].sum()) == len(sample["input_ids"])


def test_parquet_and_jsonl_read_alike(tmp_path, tokenizer):
    from datasets import Dataset

    values = [{"text": f"row {i} says something rather short"} for i in range(40)]
    Dataset.from_list(values).to_parquet(tmp_path / "a.parquet")
    first = open_source(str(tmp_path / "a.parquet"), processor=tokenizer, max_length=16)
    second = open_source(rows(tmp_path / "a.jsonl", *values), processor=tokenizer, max_length=16)
    assert [s["input_ids"].tolist() for s in first.train] == [s["input_ids"].tolist() for s in second.train]


def test_which_columns_are_read(tmp_path, tokenizer):
    pair = {"prompt": "one", "completion": "two"}
    other = {"question": "three", "answer": "four"}
    text = {"text": "five " * 20}

    def shown(row):
        source = open_source(rows(tmp_path / "a.jsonl", row), processor=tokenizer, max_length=16)
        ids = source.train[0]["input_ids"]
        return tokenizer.decode(ids, skip_special_tokens=True)[:9]

    assert [shown(pair | text | other), shown(text | other), shown(other)] == ["onetwo", "five five", "threefour"]


def test_splits_are_disjoint_and_keep_order():
    samples = [{"n": n} for n in range(100)]
    parts = split(samples)
    assert [s["n"] for name in ("train", "validation", "test") for s in parts[name]] == list(range(100))
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [90, 5, 5]


def test_the_fingerprint_follows_content_and_options(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 100)
    first = open_source(str(path), processor=tokenizer, max_length=8).fingerprint
    assert open_source(str(path), processor=tokenizer, max_length=8).fingerprint == first
    assert open_source(str(path), processor=tokenizer, max_length=9).fingerprint != first
    path.write_text("some text " * 99 + "other tex ")
    assert open_source(str(path), processor=tokenizer, max_length=8).fingerprint != first


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n \n", "is empty: it holds nothing but blank lines"),
        ("a.jsonl", b"\n\n", "is empty: it holds nothing but blank lines"),
        ("a.txt", b"short", "fewer than 16 tokens"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "cannot be read"),
        ("a.jsonl", b'{"body": "a"}', "columns body"),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}', "row 2: text is None"),
        ("a.jsonl", b'{"prompt": "a", "completion": 3}', "row 1: completion is 3"),
        ("a.jsonl", b'{"prompt": "' + b"long " * 40 + b'", "completion": "b"}', "row 1: "),
        ("a.parquet", b"not parquet", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_clear_error_with_its_name(tmp_path, tokenizer, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(str(path), processor=tokenizer, max_length=16)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_of_rows_that_are_too_long_the_first_is_named_and_all_are_counted(tmp_path, tokenizer):
    long, good = {"prompt": "a" * 40, "completion": "b"}, {"prompt": "a", "completion": "b"}
    place = rows(tmp_path / "a.jsonl", good, long, good, long, {"prompt": "a", "completion": None}, long)
    with pytest.raises(
        DataError, match=r"row 2: 4\d tokens, the limit is 16; .* shorten it \(3 rows are too long in all\)$"
    ):
        open_source(str(place), processor=tokenizer, max_length=16)
    with pytest.raises(DataError, match=r"shorten it$"):
        open_source(str(rows(tmp_path / "b.jsonl", good, long)), processor=tokenizer, max_length=16)


@pytest.mark.parametrize("name", ["b.txt", "b", "c/d"])
def test_a_file_that_is_not_there(tmp_path, tokenizer, name):
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(tmp_path / name), processor=tokenizer)


def test_a_tokenizer_written_in_python(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("naïve " * 50)
    source = open_source(str(path), processor=ByT5Tokenizer(), max_length=16)
    samples = [*source.train, *source.validation, *source.test]
    assert len(samples) == 350 // 16
    assert {sample["bytes"] for sample in samples} == {15}


@pytest.mark.parametrize("words", ["one two three", "é" * 5])
def test_shares_of_a_document_add_up(words):
    for tokens in (1, 3, 4, 50):
        shares = text._shares(words, tokens)
        assert len(shares) == tokens
        assert sum(shares) == len(words.encode())
        assert max(shares) - min(shares) <= 1


def test_text_without_a_tokenizer(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(DataError, match="tokenizer"):
        open_source(str(path))


def test_a_batch_longer_than_the_context_is_refused(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 100)
    source = within(open_source(str(path), processor=tokenizer, max_length=16), 15)
    with pytest.raises(DataError, match="16 tokens, this model takes 15"):
        source.collate(source.train[:1])


def test_a_token_the_model_does_not_have_is_refused(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 100)
    source = open_source(str(path), processor=tokenizer, max_length=16)
    largest = max(int(sample["input_ids"].max()) for sample in source.train)
    within(source, vocabulary=largest + 1).collate(source.train)
    with pytest.raises(DataError, match=f"number {largest}, this model has {largest}"):
        within(source, vocabulary=largest).collate(source.train)


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("test.jsonl", True),
        ("./anywhere", True),
        ("owner/name:config@test", True),
        ("owner/name", False),
        ("stdlib-text", False),
    ],
)
def test_what_was_set_apart_to_measure_on(name, apart):
    assert set_apart(name) == apart


def test_a_whole_source_is_measured_in_the_order_of_its_file(tmp_path, tokenizer):
    name = rows(tmp_path / "a.jsonl", *({"prompt": f"{n} is", "completion": f" {n}"} for n in range(40)))
    source = open_source(name, processor=tokenizer, max_length=16)
    assert len(source.test) == 2
    one_by_one = [source.collate([sample])["labels"] for sample in whole(source).test]
    assert len({str(labels) for labels in one_by_one}) == len(one_by_one) == 40
    assert [str(one_by_one[-1])] == [str(source.collate([source.test[-1]])["labels"])]


@pytest.mark.parametrize(("context", "length"), [(64, 64), (131072, 512)])
def test_without_a_length_samples_are_as_long_as_the_model_takes_and_512_at_most(tmp_path, tokenizer, context, length):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"word{i} " for i in range(2000)))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 10**30
    opener = opener_for(pico.PICO["llama"](max_position_embeddings=context), processor=tokenizer)
    assert {len(sample["input_ids"]) for sample in opener(str(path), None).train} == {length}
    assert len(opener(str(path), 32).train[0]["input_ids"]) == 32
