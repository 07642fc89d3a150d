"""The questions our own tasks ask."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from mote_quant.data.stdlib_text.corpus import documents
from mote_quant.errors import DataError
from mote_quant.evaluate import local_tasks


@pytest.fixture(scope="module")
def lines():
    return list(local_tasks.next_lines()["test"])


def indent(line):
    return len(line) - len(line.lstrip(" \t"))


def test_the_true_line_follows_its_context_in_a_held_out_file_and_no_other_choice_does(lines):
    files = [content + "\n" for content in documents()["test"]]
    assert len(lines) > 200
    for row in lines:
        follows = [any(row["context"] + choice + "\n" in file for file in files) for choice in row["choices"]]
        assert follows == [index == row["gold"] for index in range(4)]


def test_wrong_lines_are_indented_alike_and_different(lines):
    for row in lines:
        assert len(set(row["choices"])) == 4
        assert len({indent(choice[1:]) for choice in row["choices"]}) == 1


def test_neither_place_nor_length_gives_the_answer_away(lines):
    places = Counter(row["gold"] for row in lines)
    longest = sum(max(row["choices"], key=len) == row["choices"][row["gold"]] for row in lines)
    assert all(0.18 < places[place] / len(lines) < 0.32 for place in range(4))
    assert 0.15 < longest / len(lines) < 0.35


def test_questions_are_the_same_every_time_and_the_first_ones_are_of_many_files(lines):
    again = list(local_tasks.next_lines()["test"])
    assert again == lines
    first = [next(n for n, file in enumerate(documents()["test"]) if row["context"] in file) for row in lines[:10]]
    assert len(set(first)) == 10


def test_passages_are_the_held_out_files():
    passages = [row["text"] for row in local_tasks.passages()["test"]]
    assert all(len(passage) <= local_tasks.PASSAGE or passage.count("\n") == 1 for passage in passages)
    assert Counter("".join(passages).split()) == Counter("".join(f"{text}\n" for text in documents()["test"]).split())


STORIES = [
    f"Tim{n} had a ball. It was the colour of number {n}. He gave it to Ann. She said: thank you for ball {n}, Tim!"
    for n in range(40)
]


def write_text(path):
    path.write_text("\n<|endoftext|>\n".join(STORIES))


def write_rows(path):
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))


@pytest.mark.parametrize(("name", "write"), [("stories.txt", write_text), ("stories.jsonl", write_rows)])
def test_continuations_are_true_ones_of_the_last_documents(tmp_path, name, write):
    write(tmp_path / name)
    rows = list(local_tasks.continuations(str(tmp_path / name), share=0.25, prefix="<s>")["test"])
    assert len(rows) == 10
    for row, story in zip(rows, STORIES[-10:], strict=True):
        assert row["context"].startswith("<s>Tim")
        begun = row["context"].removeprefix("<s>")
        assert [story.startswith(begun + choice) for choice in row["choices"]].index(True) == row["gold"]
        assert len(set(row["choices"])) == 4


def test_the_file_may_be_named_by_the_environment(tmp_path, monkeypatch):
    write_text(tmp_path / "stories.txt")
    monkeypatch.setenv(local_tasks.FILE_VARIABLE, str(tmp_path / "stories.txt"))
    assert len(local_tasks.continuations(share=0.5)["test"]) == 20


def test_files_that_give_no_questions(tmp_path, monkeypatch):
    monkeypatch.delenv(local_tasks.FILE_VARIABLE, raising=False)
    with pytest.raises(DataError, match="environment variable MOTE_QUANT_TEXT"):
        local_tasks.continuations()
    with pytest.raises(DataError, match="does not exist"):
        local_tasks.continuations(str(tmp_path / "absent.txt"))
    (tmp_path / "short.txt").write_text("<|endoftext|>".join(STORIES[:3]))
    with pytest.raises(DataError, match="no question"):
        local_tasks.continuations(str(tmp_path / "short.txt"), share=1.0)
    (tmp_path / "other.jsonl").write_text('{"words": "a b"}\n')
    with pytest.raises(DataError, match="no column text; it has words"):
        local_tasks.continuations(str(tmp_path / "other.jsonl"))
