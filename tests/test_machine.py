"""What a machine says of itself, and how fast it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mote_quant import machine
from mote_quant.estimate import measure_rates, rates


def test_a_folder_that_is_not_there_yet_lies_where_its_parent_does(tmp_path: Path) -> None:
    assert machine.existing(tmp_path / "a" / "b") == tmp_path
    assert machine.free_disk(tmp_path / "a" / "b") == machine.free_disk(tmp_path) != 0


def _system(patch: pytest.MonkeyPatch, folder: Path, meminfo: str | None, limit: str, used: str) -> None:
    patch.setattr(machine, "_MEMINFO", folder / "meminfo")
    patch.setattr(machine, "_CGROUPS", ((folder / "max", folder / "current"),))
    if meminfo is not None:
        (folder / "meminfo").write_text(meminfo)
    (folder / "max").write_text(limit)
    (folder / "current").write_text(used)


MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\nHugePages_Total: 0\n"


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max\n", "0\n", (1000 * 1024, 600 * 1024)),
        ("512000\n", "12000\n", (512000, 500000)),
        ("512000\n", "600000\n", (512000, 0)),
        ("9999999999\n", "0\n", (1000 * 1024, 600 * 1024)),
    ],
)
def test_a_container_has_no_more_than_it_may(
    limit: str, used: str, expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _system(monkeypatch, tmp_path, MEMINFO, limit, used)
    assert machine.memory() == expected


def test_a_system_that_tells_only_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _system(monkeypatch, tmp_path, None, "max", "0")
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}[name])
    assert machine.memory() == (40960, None)


def test_rates_are_measured_quickly_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(20 * 2**20))
    before = sorted(tmp_path.rglob("*"))
    measured = measure_rates(tmp_path, tmp_path / "out").to_dict()
    assert sorted(tmp_path.rglob("*")) == before
    assert all(rate > 1e5 for rate in measured.values()), measured


def test_what_cannot_be_measured_is_as_fast_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(rates.tempfile, "TemporaryFile", full)
    measured = measure_rates(tmp_path / "absent", tmp_path)
    assert measured.read == measured.write == measured.copy
