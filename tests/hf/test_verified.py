"""A file is read to be verified once, and again as soon as it could be another."""

from __future__ import annotations

import os

import pytest

from mote_quant.errors import ArtifactError
from mote_quant.hf import integrity, verified
from mote_quant.hf.integrity import describe, verify_file


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An old file, and how often it is read from now on."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    expected = describe(path)
    reads = []
    original = integrity.sha256
    monkeypatch.setattr(integrity, "sha256", lambda path: reads.append(path) or original(path))
    # Only the system sets the time of the last change of a file's status.
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    return path, expected, reads


def test_the_second_look_does_not_read(file):
    path, expected, reads = file
    verify_file(path, expected)
    verify_file(path, expected)
    assert len(reads) == 1


def test_a_file_that_changed_is_read_again(file):
    path, expected, reads = file
    verify_file(path, expected)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="altered"):
        verify_file(path, expected)
    assert len(reads) == 2


def test_a_file_put_in_its_place_with_its_times_is_read_again(file, tmp_path):
    path, expected, _ = file
    verify_file(path, expected)
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS" * 1000)
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    with pytest.raises(ArtifactError, match="altered"):
        verify_file(path, expected)


def test_a_file_too_new_to_tell_is_read_every_time(file, monkeypatch):
    path, expected, reads = file
    monkeypatch.setattr(verified, "_SETTLED_NS", 10**15)
    verify_file(path, expected)
    verify_file(path, expected)
    assert len(reads) == 2


def test_always_means_always(file, monkeypatch):
    path, expected, reads = file
    verify_file(path, expected)
    monkeypatch.setenv("MOTE_QUANT_VERIFY", "always")
    verify_file(path, expected)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_is_no_error(file, monkeypatch, tmp_path):
    path, expected, reads = file
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    monkeypatch.setenv("MOTE_QUANT_CACHE", str(tmp_path / "blocked"))
    verify_file(path, expected)
    verify_file(path, expected)
    assert len(reads) == 2
