"""Data sets by id: how they are named, and what is said where they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from mote_quant.data import open_source
from mote_quant.data.hub import DatasetId
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import DataError


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("imdb", DatasetId("imdb", None, "train")),
        ("Salesforce/wikitext", DatasetId("Salesforce/wikitext", None, "train")),
        ("Salesforce/wikitext:wikitext-2-raw-v1", DatasetId("Salesforce/wikitext", "wikitext-2-raw-v1", "train")),
        ("a/b@validation", DatasetId("a/b", None, "validation")),
        ("a/b:c@train[:10%]", DatasetId("a/b", "c", "train[:10%]")),
        ("a/b/c", None),
        ("a b", None),
        ("a/b:", None),
        ("a/b@", None),
    ],
)
def test_names(name: str, parsed: DatasetId | None) -> None:
    assert DatasetId.parse(name) == parsed


class Datasets:
    """Stands in for `load_dataset`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[Any]()

    def __call__(self, path: str, config: str | None, split: str) -> Any:
        self.asked.append((path, config, split))
        if self.error is not None:
            raise self.error
        return datasets.Dataset.from_list([{"text": f"text number {number}"} for number in range(50)])


def opened(name: str, patch: pytest.MonkeyPatch, error: Exception | None = None, offline: bool = False) -> Datasets:
    stand_in = Datasets(error)
    patch.setattr(datasets, "load_dataset", stand_in)
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    open_source(name, processor=build_processor(), max_length=8)
    return stand_in


def test_config_and_split_reach_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened("a/b:c@train[:5]", monkeypatch).asked == [("a/b", "c", "train[:5]")]


def test_offline_it_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a/b.*HF_HUB_OFFLINE is set.*local \.txt"):
        opened("a/b", monkeypatch, ConnectionError("cannot reach the hub\nlong story"), offline=True)
    with pytest.raises(DataError, match=r"cannot reach the hub\. Check the connection, or give a local") as told:
        opened("a/b", monkeypatch, ConnectionError("cannot reach the hub.\nlong story"))
    assert "long story" not in str(told.value)


def test_a_name_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"Check the name \(owner/name"):
        opened("a/b", monkeypatch, ValueError("Config name is missing"))
    with pytest.raises(DataError, match="no `datasets` id"):
        opened("a b c", monkeypatch)


def test_a_mistyped_path_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/train", "./train", "../train", "/data/train", "train.jsonl"):
        with pytest.raises(DataError, match="does not exist"):
            opened(name, monkeypatch)
