"""The tiny sweep on a pico model, and workers that do not start processes."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mote_quant.sweeps import workers
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs import run_job
from tests.sweeps.tiny import lay_out


class Inline:
    """Carries out a job at once, in this process; `ran` are the kinds of the jobs, in order."""

    ran: list[str]

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def submit(self, job: Job) -> Future[Result]:
        future: Future[Result] = Future()
        self.ran.append(job.kind)
        try:
            future.set_result(run_job(job))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is running."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs run in this process; the list of their kinds."""
    monkeypatch.setattr(Inline, "ran", [], raising=False)
    monkeypatch.setattr(workers, "LocalWorkers", Inline)
    return Inline.ran


@pytest.fixture(scope="module")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny sweep whose model and text lie in a temporary folder."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    return lay_out(folder)
