from __future__ import annotations

import hashlib
import os

import pytest
import torch

from mote_quant.errors import ArtifactError, SaveError
from mote_quant.hf import checkpoint
from mote_quant.hf.integrity import describe, sha256, verify_file, verify_files, write_atomic


def test_describe_is_size_and_sha256(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 2_000_000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert describe(path) == {"bytes": 6_000_000, "sha256": expected}
    assert sha256(path) == expected


@pytest.mark.parametrize(
    ("content", "said"), [(b"abcd", "4 bytes, 3 were written"), (b"abd", "altered"), (None, "missing")]
)
def test_verify_names_the_file_and_what_is_wrong(tmp_path, content, said):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    expected = describe(path)
    verify_file(path, expected)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"a\.bin.*{said}"):
        verify_file(path, expected)


def test_files_that_are_missing_or_too_many(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x")
    manifest = {path.name: describe(path) for path in paths}
    verify_files(paths, manifest)
    with pytest.raises(ArtifactError, match="b is missing"):
        verify_files(paths[:1], manifest)
    with pytest.raises(ArtifactError, match="b is not one of the files"):
        verify_files(paths, {"a": manifest["a"]})


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def one(value: float) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint({"x": torch.full((3,), value)}, {"value": value})


def test_checkpoints_replace_one_another_and_read_back(tmp_path):
    checkpoint.write(tmp_path, 2, one(2.0), {"extra.txt": "hello"})
    checkpoint.write(tmp_path, 10, one(10.0), {})
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    read = checkpoint.read(tmp_path / "checkpoint-10")
    assert read.rows("x", 0, None).tolist() == [10.0] * 3
    assert read.rows("x", 1, 2).tolist() == [10.0]
    assert read.values == {"value": 10.0}


def test_the_newest_is_the_highest_number_not_the_last_word(tmp_path):
    for step in ("checkpoint-9", "checkpoint-10", ".checkpoint-11.part", "checkpoint-old"):
        (tmp_path / step).mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoint.latest(None) is None
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_a_failed_write_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 1, one(1.0), {})

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(
        SaveError, match=r"checkpoint-2 could not be written: disk full\. The checkpoint before it is kept"
    ):
        checkpoint.write(tmp_path, 2, one(2.0), {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint.read(tmp_path / "checkpoint-1").values == {"value": 1.0}
