"""`sweep`: from a sweep file to points, fronts and pages, resumable, each failure for itself."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mote_quant.errors import FingerprintError, RequestError, RunError, SaveError, SweepError
from mote_quant.hf.integrity import write_atomic
from mote_quant.progress import Progress, Silent
from mote_quant.provenance import versions
from mote_quant.sweeps.budgets import Selection, select
from mote_quant.sweeps.candidates import without_teacher
from mote_quant.sweeps.document import build_document
from mote_quant.sweeps.engine import Done, Failure, Outcome, Workers, run_graph
from mote_quant.sweeps.graph import WEIGH, Graph
from mote_quant.sweeps.load import Loaded, Source, load_sweep
from mote_quant.sweeps.report import write_report
from mote_quant.sweeps.schema import Sweep

_log = logging.getLogger(__name__)
_OWN, _LOCK = "sweep.json", ".lock"


@dataclass(frozen=True)
class Options:
    """How a sweep is carried out: `jobs` cells at a time, here or on the Ray cluster at `ray` (with `gpus` a cell).

    `overrides` are set over the sweep; `command` is what the document says it was made by.
    """

    jobs: int = 1
    ray: str | None = None
    gpus: float = 0.0
    command: str = "mote_quant.sweep"
    overrides: Sequence[str] = ()
    progress: Progress = field(default_factory=Silent)


def sweep(source: Source, output: str | Path, *, options: Options | None = None) -> dict[str, Any]:
    """Carry out a sweep in folder `output` and return its document, which `output`/results.json holds too.

    `source` is a path, a shipped name or a mapping. What is done already is not done again. Raises SweepError, after
    everything is written, when parts have no result.
    """
    _refuse_workers()
    options = options or Options()
    loaded = load_sweep(source, options.overrides)
    root = Path(output).resolve()
    _claim(root, loaded.sweep)
    with _disk(root), _alone(root):
        document = _documented(loaded, root, options)
        write_report(document, root)
    if document["failures"]:
        raise SweepError(_summary(document["failures"], root))
    return document


def preview(source: Source, overrides: Sequence[str] = ()) -> tuple[Loaded, Selection]:
    """Who would take part, planned from configs alone: nothing is trained or written."""
    from mote_quant.sweeps.jobs.weigh import weighed

    loaded = load_sweep(source, overrides)
    recipes = {candidate.name: without_teacher(candidate.recipe) for candidate in loaded.candidates}
    found = weighed(loaded.sweep.base.model, recipes)
    return loaded, select(loaded.sweep, loaded.candidates, found["weights"], found["dense_bytes"])


def _documented(loaded: Loaded, root: Path, options: Options) -> dict[str, Any]:
    started = time.monotonic()
    with _workers(options) as workers:
        settled, selection, outcomes = _carried_out(loaded, root, workers, options.progress)
    taking_part = [candidate for candidate in loaded.candidates if candidate.name in selection.fits]
    document = build_document(settled, taking_part, selection, outcomes, root)
    effort = _effort(outcomes, time.monotonic() - started, options)
    return document | {"provenance": {**versions(), "command": options.command, **effort}}


def _refuse_workers() -> None:
    """A worker process imports the script that started it, and must not start the sweep again."""
    if multiprocessing.parent_process() is not None:
        raise RequestError('a script that calls sweep must do so inside of `if __name__ == "__main__":`')


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaveError(f"{root} could not be read or written: {error}; free space and run the same again") from error


def _claim(root: Path, sweep: Sweep) -> None:
    """Make `root` the folder of this sweep. FingerprintError when it is another's, or holds something else."""
    own = {"name": sweep.name, "model": sweep.base.model, "data": sweep.data}
    path = root / _OWN
    try:
        if path.exists():
            known = json.loads(path.read_text())
            differing = [
                f"{key} was {known.get(key)}, is now {value}" for key, value in own.items() if known.get(key) != value
            ]
            if differing:
                raise FingerprintError(f"{root} holds another sweep: {'; '.join(differing)}. Choose another --output")
            return
        if root.exists() and any(root.iterdir()):
            raise FingerprintError(f"{root} is not empty and holds no sweep; choose another --output")
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(own))
    except OSError as error:
        raise SaveError(f"{root} cannot be used as an output folder: {error}") from error
    except (ValueError, AttributeError) as error:
        raise FingerprintError(f"{path} cannot be read ({error}); choose another --output") from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two sweeps in one folder would work on the same cells. FingerprintError when another one is at it."""
    lock = FileLock(root / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FingerprintError(
            f"another sweep is at work in {root}; wait for it, or choose another --output"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _workers(options: Options) -> Iterator[Workers]:
    if options.ray is None:
        from mote_quant.sweeps.workers import LocalWorkers

        workers: Workers = LocalWorkers(options.jobs)
    else:
        from mote_quant.sweeps.cluster import RayWorkers

        workers = RayWorkers(options.ray, options.jobs, options.gpus)
    try:
        yield workers
    finally:
        workers.close()


def _carried_out(
    loaded: Loaded, root: Path, workers: Workers, progress: Progress
) -> tuple[Sweep, Selection, dict[str, Outcome]]:
    graph = Graph.of(loaded.sweep, root)
    weighed = run_graph([graph.weigh(loaded.candidates)], workers, progress)[WEIGH]
    if isinstance(weighed, Failure):
        raise RunError(f"nothing could be planned: {weighed.error}")
    sweep, lost_tasks = _known_tasks(loaded.sweep, weighed.result["tasks"])
    graph = replace(graph, sweep=sweep)
    selection = select(sweep, loaded.candidates, weighed.result["weights"], weighed.result["dense_bytes"])
    outcomes = run_graph([graph.base(), *graph.work(loaded.candidates, selection.fits)], workers, progress)
    return sweep, selection, {WEIGH: weighed, **lost_tasks, **outcomes}


def _known_tasks(sweep: Sweep, checked: Mapping[str, str | None]) -> tuple[Sweep, dict[str, Outcome]]:
    """The sweep without the tasks that cannot be had, which are failures of their own."""
    wrong: dict[str, Outcome] = {f"task {name}": Failure(error) for name, error in checked.items() if error}
    known = [name for name in sweep.tasks if not checked.get(name)]
    return sweep.model_copy(update={"tasks": known}), wrong


def _effort(outcomes: Mapping[str, Outcome], seconds: float, options: Options) -> dict[str, Any]:
    """How long this command took, what its cells took, and all cells together, whenever they were run, and by whom."""
    done = {json.dumps(o.key): o for o in outcomes.values() if isinstance(o, Done) and "seconds" in o.result}
    fresh = [outcome.result["seconds"] for outcome in done.values() if outcome.fresh]
    return {
        "wall_seconds": round(seconds, 1),
        "jobs": options.jobs,
        "cells_run": len(fresh),
        "cells_run_seconds": round(sum(fresh), 1),
        "cells": len(done),
        "cells_seconds": round(sum(outcome.result["seconds"] for outcome in done.values()), 1),
        "cells_commits": sorted({str(outcome.result.get("commit")) for outcome in done.values()}),
    }


def _summary(failures: Sequence[Mapping[str, Any]], root: Path) -> str:
    lines = [f"{len(failures)} of the sweep's cells have no result; all others are in {root}"]
    lines += [f"{failure['cell']}: {failure['error']}" for failure in failures]
    return "\n".join(lines)
