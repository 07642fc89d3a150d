"""Folders of data files, and what `datasets` saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from mote_quant.data import open_source
from mote_quant.data.source import Source
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import DataError

TEXTS = [f"story number {number} of some length, told again and again" for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_processor()


def opened(folder: Path, tokenizer: Any) -> Source:
    return open_source(str(folder), processor=tokenizer, max_length=8)


def ids(source: Source) -> list[int]:
    samples = [*source.train, *source.validation, *source.test]
    return [token for sample in samples for token in sample["input_ids"].tolist()]


def rows(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


@pytest.fixture
def whole(tmp_path: Path, tokenizer: Any) -> list[int]:
    """The tokens of all texts, read from one file."""
    rows(tmp_path / "whole.jsonl", TEXTS)
    return ids(open_source(str(tmp_path / "whole.jsonl"), processor=tokenizer, max_length=8))


def test_jsonl_files_in_the_order_of_their_names(tmp_path: Path, tokenizer: Any, whole: list[int]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows(folder / "b.jsonl", TEXTS[10:])
    rows(folder / "a.jsonl", TEXTS[:10])
    (folder / "readme.md").write_text("not data")
    assert ids(opened(folder, tokenizer)) == whole


def test_parquet_files(tmp_path: Path, tokenizer: Any, whole: list[int]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, part in enumerate((TEXTS[:7], TEXTS[7:])):
        datasets.Dataset.from_list([{"text": text} for text in part]).to_parquet(folder / f"{number}.parquet")
    assert ids(opened(folder, tokenizer)) == whole


def test_text_files(tmp_path: Path, tokenizer: Any, whole: list[int]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("<|endoftext|>".join(TEXTS[:10]))
    (folder / "b.txt").write_text("<|endoftext|>".join(TEXTS[10:]))
    assert ids(opened(folder, tokenizer)) == whole


@pytest.mark.parametrize("splits", [False, True])
def test_what_datasets_saved(tmp_path: Path, tokenizer: Any, whole: list[int], splits: bool) -> None:
    table = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    other = datasets.Dataset.from_list([{"text": "something else altogether"}])
    saved: Any = datasets.DatasetDict({"test": other, "train": table}) if splits else table
    saved.save_to_disk(tmp_path / "saved")
    assert ids(opened(tmp_path / "saved", tokenizer)) == whole


def test_a_saved_data_set_without_train(tmp_path: Path, tokenizer: Any) -> None:
    table = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="has no split train, but test"):
        opened(tmp_path / "saved", tokenizer)
    assert ids(opened(tmp_path / "saved" / "test", tokenizer))


def test_a_saved_data_set_that_was_damaged(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path, tokenizer)


def test_a_folder_without_data(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="holds no data"):
        opened(tmp_path, tokenizer)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows(folder / "a.jsonl", TEXTS)
    first = opened(folder, tokenizer).fingerprint
    assert opened(folder, tokenizer).fingerprint == first
    rows(folder / "a.jsonl", [*TEXTS, "one more"])
    assert opened(folder, tokenizer).fingerprint != first
