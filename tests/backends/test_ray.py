"""A sweep on a real Ray cluster, on this machine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mote_quant
from mote_quant.errors import CellDiedError, RequestError
from mote_quant.sweeps import cluster
from mote_quant.sweeps.cells import Job
from mote_quant.sweeps.cluster import RayWorkers
from mote_quant.sweeps.run import Options
from tests.backends.beside import ROOT, needs
from tests.sweeps.tiny import lay_out

needs("ray", "ray")


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts processes of its own: they find our code and the tests' where we do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(scope="module")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    sweep = lay_out(tmp_path_factory.mktemp("ray"))
    kept = {name: sweep["contenders"][name] for name in ("dense", "mote")}
    return sweep | {"seeds": [0], "learning_rates": [1.0e-3], "contenders": kept}


@pytest.fixture
def workers() -> Iterator[RayWorkers]:
    started = RayWorkers("local", 2)
    yield started
    started.close()


def test_a_sweep_gives_the_points_of_local_processes(tiny_sweep: dict[str, Any], tmp_path: Path) -> None:
    here = mote_quant.sweep(tiny_sweep, tmp_path / "here")
    there = mote_quant.sweep(tiny_sweep, tmp_path / "there", options=Options(jobs=2, ray="local"))
    for one, other in zip(here["points"], there["points"], strict=True):
        for key in ("contender", "seed", "stored_bytes", "loss"):
            assert one[key] == pytest.approx(other[key]) if key == "loss" else one[key] == other[key]
    shutil.rmtree(tmp_path / "there" / "cells")


def test_a_killed_worker_and_a_failing_cell_fail_alone(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_task", workers._ray.remote(max_retries=0)(various))
    ends = {kind: workers.submit(Job(kind, tmp_path, {})) for kind in ("die", "refuse", "live")}
    assert ends["live"].result(timeout=120) == {"alive": True}
    with pytest.raises(RequestError, match="no such thing"):
        ends["refuse"].result(timeout=120)
    with pytest.raises(CellDiedError, match="run the same command again"):
        ends["die"].result(timeout=120)


def various(job: Job) -> dict[str, bool]:
    """A job that dies, one that refuses, one that succeeds."""
    if job.kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.kind == "refuse":
        raise RequestError("no such thing")
    return {"alive": True}


def test_no_cluster_at_that_address() -> None:
    with pytest.raises(RequestError, match="no Ray cluster can be reached at 127"):
        cluster.RayWorkers("127.0.0.1:1", 1)
