"""Run a graph of cells: each as soon as what it needs is there, a failure stopping only what depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mote_quant.errors import MoteError
from mote_quant.progress import Progress
from mote_quant.sweeps.cells import AGAIN, Job, Result, store_result, stored_result, worded

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; `cause` names the cell it comes from when that is another one."""

    error: str
    cause: str = ""


@dataclass(frozen=True)
class Done:
    """A finished cell: what it is (its key), where its model lies, what it came to. `fresh`: run now, not found."""

    key: Any
    model: Path
    result: Result
    fresh: bool = False

    @classmethod
    def of(cls, job: Job, result: Result, fresh: bool) -> Done:
        """The outcome of `job`."""
        return cls(job.folder.name, job.folder / "model", result, fresh)


Outcome = Done | Failure


@dataclass(frozen=True)
class Node:
    """A cell of the graph. `build` makes its job of the outcomes of `needs`, all of which are Done unless `tolerant`.

    Where there is nothing to do, `build` returns the outcome itself.
    """

    name: str
    needs: tuple[str, ...]
    build: Callable[[Mapping[str, Outcome]], Job | Outcome]
    tolerant: bool = False


class Workers(Protocol):
    """Whoever carries out jobs, `slots` at a time; a job that fails or dies fails its future and nothing else."""

    slots: int

    def submit(self, job: Job) -> Future[Result]:
        """Begin `job`."""

    def close(self) -> None:
        """Stop; what is running is given up."""


def run_graph(nodes: list[Node], workers: Workers, progress: Progress) -> dict[str, Outcome]:
    """Name -> outcome of every node. `nodes` come in an order in which needs precede those who need them."""
    outcomes: dict[str, Outcome] = {}
    running: dict[Future[Result], tuple[Node, Job]] = {}
    waiting = list(nodes)
    progress.start("cells", len(nodes))
    while waiting or running:
        for node in _ready(waiting, outcomes):
            outcome = _begin(node, outcomes)
            if isinstance(outcome, Job):
                busy = {job.folder for _, job in running.values()}
                if len(running) == workers.slots or outcome.folder in busy:
                    continue
                running[workers.submit(outcome)] = (node, outcome)
            else:
                outcomes[node.name] = outcome
            waiting.remove(node)
        progress.advance(len(outcomes))
        if running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node, job = running.pop(future)
                outcomes[node.name] = _finished(node, job, future)
    progress.advance(len(outcomes))
    return outcomes


def _ready(waiting: list[Node], outcomes: Mapping[str, Outcome]) -> list[Node]:
    return [node for node in waiting if all(name in outcomes for name in node.needs)]


def _begin(node: Node, outcomes: Mapping[str, Outcome]) -> Outcome | Job:
    """The job of `node`, or its outcome where there is nothing (left) to do."""
    needed = {name: outcomes[name] for name in node.needs}
    lost = following(needed)
    if lost is not None and not node.tolerant:
        return lost
    try:
        job = node.build(needed)
        if not isinstance(job, Job):
            return job
        known = stored_result(job)
    except MoteError as error:
        return Failure(error.message)
    return job if known is None else Done.of(job, known, fresh=False)


def following(needed: Mapping[str, Outcome]) -> Failure | None:
    """The failure that one of `needed` hands on; None when all of them are done."""
    for name, outcome in needed.items():
        if isinstance(outcome, Failure):
            return Failure(outcome.error, outcome.cause or name)
    return None


def _finished(node: Node, job: Job, future: Future[Result]) -> Outcome:
    error = future.exception()
    try:
        if error is None:
            result = future.result()
            if not result.pop(AGAIN, False):
                store_result(job, result)
            return Done.of(job, result, fresh=True)
    except (MoteError, ValueError) as lost:
        error = lost
    said = error.message if isinstance(error, MoteError) else worded(error)
    _log.warning("%s failed: %s", node.name, said)
    return Failure(said)
